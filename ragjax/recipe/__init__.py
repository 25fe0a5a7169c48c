"""The stages of a run, in order; each is skipped when done and goes on where it stopped."""

from ragjax.recipe.compression import compress
from ragjax.recipe.pretraining import pretrain
from ragjax.recipe.starts import existing_model
from ragjax.recipe.texts import open_texts

__all__ = ["compress", "existing_model", "open_texts", "pretrain"]
