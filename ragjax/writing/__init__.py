"""Corpora that a model writes: prompts in, pairs of prompt and completion out."""

from ragjax.writing.dataset import Written
from ragjax.writing.write import write_dataset

__all__ = ["Written", "write_dataset"]
