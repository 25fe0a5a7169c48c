"""Masks chosen one layer after another, so that the scores of one layer live at once."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Key, PyTree

from ragjax.config import Sparsity
from ragjax.sparsity.masks import Masks


def by_layer(choose: Callable[..., Masks], config: Sparsity, *trees: PyTree, key: Key[Array, ""]) -> Masks:
    """`choose(*trees, key=key)`, where it can be for one layer after another.

    It can be where all arrays are stacks [layers, in, out] of one depth, and the pattern ranks no layer
    against another.

    Args:
      choose: from trees of arrays and a random key to masks.
      config: its pattern is looked at.
      trees: arrays by parameter, None where there is nothing.
      key: random key; each layer draws with its own.
    """
    leaves = jax.tree.leaves(trees)
    depths = {leaf.shape[0] if leaf.ndim == 3 else 0 for leaf in leaves}
    if config.pattern == "global" or len(depths) != 1 or 0 in depths:
        return choose(*trees, key=key)
    keys = jax.random.split(key, depths.pop())
    return jax.lax.map(lambda layer: choose(*layer[0], key=layer[1]), (trees, keys))
