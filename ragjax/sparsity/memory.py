"""What an optimizer remembers of the weights: found by the path of their parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ragjax.sparsity.masks import Masks


def zero_where_masked(state: optax.OptState, masks: Masks) -> optax.OptState:
    """An optimizer state whose moments are 0 where their weight is masked.

    Args:
      state: any tree; arrays that lie under a parameter's path and have its shape belong to it.
        Moments of other shapes, as Adafactor's factored ones, are left.
      masks: the masks.
    """
    owners = dict(jax.tree_util.tree_leaves_with_path(masks, is_leaf=lambda leaf: leaf is None))

    def zero(path: tuple, leaf: Array) -> Array:
        mask = _owner(path, owners)
        if mask is None or mask.shape != jnp.shape(leaf):
            return leaf
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(zero, state)


def renewed(state: optax.OptState, fresh: optax.OptState, params: PyTree) -> optax.OptState:
    """An optimizer state that forgets the parameters; its counters go on.

    Args:
      state: the state.
      fresh: the state of the optimizer where it begins at `params`.
      params: the parameters, whose paths end those of the arrays that belong to them.
    """
    owners = dict(jax.tree_util.tree_leaves_with_path(params))
    return jax.tree_util.tree_map_with_path(
        lambda path, old, new: old if _owner(path, owners) is None else new, state, fresh
    )


def _owner(path: tuple, owners: dict[tuple, Array]) -> Array | None:
    """What lies under the longest of the paths in `owners` that ends `path`."""
    return next((owners[path[i:]] for i in range(len(path)) if path[i:] in owners), None)
