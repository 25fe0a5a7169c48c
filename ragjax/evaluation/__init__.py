"""Perplexity, size, sparsity and speed."""

from ragjax.evaluation.figures import Figures, evaluate
from ragjax.evaluation.speed import Speed, forward_speed

__all__ = ["Figures", "Speed", "evaluate", "forward_speed"]
