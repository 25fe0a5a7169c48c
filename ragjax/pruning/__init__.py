"""Pruning a trained model at once: sparse models, what each way of it costs, and what each matrix bears."""

from ragjax.pruning.one_shot import Pruned, PruneReport, prune

__all__ = ["PruneReport", "Pruned", "prune"]
