"""Which weights go: scores, patterns, schedules, and the transform that removes them."""

from ragjax.sparsity.budgets import BUDGETS
from ragjax.sparsity.depth import choose_layers, keep_layers
from ragjax.sparsity.figures import SparsityFigures, sparsity_figures
from ragjax.sparsity.hard import PruneState, SparsifyState, prune
from ragjax.sparsity.latent import Latent, LatentState
from ragjax.sparsity.masks import (
    PRUNABLE,
    Masks,
    apply_masks,
    dense_masks,
    masks_from_zeros,
    prunable,
)
from ragjax.sparsity.patterns import (
    PATTERNS,
    n_of_m,
    over_model,
    per_block,
    per_row,
    per_tensor,
    removed,
)
from ragjax.sparsity.rules import Rule, Turn
from ragjax.sparsity.schedules import SPARSITY_SCHEDULES, Schedule, schedule
from ragjax.sparsity.scores import SCORES, Evidence, Score, magnitude, random, ria, saliency, wanda
from ragjax.sparsity.transform import METHODS, sparsify

__all__ = [
    "BUDGETS",
    "METHODS",
    "PATTERNS",
    "PRUNABLE",
    "SCORES",
    "SPARSITY_SCHEDULES",
    "Evidence",
    "Latent",
    "LatentState",
    "Masks",
    "PruneState",
    "Rule",
    "Schedule",
    "Score",
    "SparsifyState",
    "SparsityFigures",
    "Turn",
    "apply_masks",
    "choose_layers",
    "dense_masks",
    "keep_layers",
    "magnitude",
    "masks_from_zeros",
    "n_of_m",
    "over_model",
    "per_block",
    "per_row",
    "per_tensor",
    "prunable",
    "prune",
    "random",
    "removed",
    "ria",
    "saliency",
    "schedule",
    "sparsify",
    "sparsity_figures",
    "wanda",
]
