"""Shrinking for real: heads, neurons, width and layers leave the arrays."""

from ragjax.sparsity.shrink.costs import flops_per_token, parameter_count
from ragjax.sparsity.shrink.cut import Cut, cut, cut_and_refit
from ragjax.sparsity.shrink.importance import IMPORTANCE, Subject
from ragjax.sparsity.shrink.padding import HeadShape, head_shape, pad_heads, with_heads
from ragjax.sparsity.shrink.search import Found, Range, search
from ragjax.sparsity.shrink.selection import Importance, Kept, select
from ragjax.sparsity.shrink.sizes import Sizes, explicit_sizes, resized, sizes_of

__all__ = [
    "IMPORTANCE",
    "Cut",
    "Found",
    "HeadShape",
    "Importance",
    "Kept",
    "Range",
    "Sizes",
    "Subject",
    "cut",
    "cut_and_refit",
    "explicit_sizes",
    "flops_per_token",
    "head_shape",
    "pad_heads",
    "parameter_count",
    "resized",
    "search",
    "select",
    "sizes_of",
    "with_heads",
]
