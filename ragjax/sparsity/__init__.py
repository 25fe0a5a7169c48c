"""Which weights go: scores, patterns, schedules, and the transform that removes them."""

from ragjax.sparsity.depth import choose_layers, keep_layers
from ragjax.sparsity.figures import SparsityFigures, sparsity_figures
from ragjax.sparsity.masks import (
    PRUNABLE,
    Masks,
    apply_masks,
    dense_masks,
    masks_from_zeros,
    prunable,
)
from ragjax.sparsity.patterns import PATTERNS, n_of_m, over_model, per_row, per_tensor, removed
from ragjax.sparsity.schedules import SPARSITY_SCHEDULES, Schedule, cubic, one_shot, schedule
from ragjax.sparsity.scores import SCORES, magnitude, random
from ragjax.sparsity.transform import PruneState, SparsifyState, prune, sparsify

__all__ = [
    "PATTERNS",
    "PRUNABLE",
    "SCORES",
    "SPARSITY_SCHEDULES",
    "Masks",
    "PruneState",
    "Schedule",
    "SparsifyState",
    "SparsityFigures",
    "apply_masks",
    "choose_layers",
    "cubic",
    "dense_masks",
    "keep_layers",
    "magnitude",
    "masks_from_zeros",
    "n_of_m",
    "one_shot",
    "over_model",
    "per_row",
    "per_tensor",
    "prunable",
    "prune",
    "random",
    "removed",
    "schedule",
    "sparsify",
    "sparsity_figures",
]
