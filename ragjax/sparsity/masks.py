"""Masks: boolean arrays beside the weights that may be pruned, `None` beside those that may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ragjax.errors import InputError, listing
from ragjax.models.names import path_name
from ragjax.models.stand_ins import is_stand_in, named_leaves

Masks: TypeAlias = PyTree[Bool[Array, "..."]]
"""A tree shaped like the parameters: True where a weight is kept, None where it may not be pruned."""

PRUNABLE = ("layers/*/kernel",)
"""The matrices of the blocks: all but embeddings, norms, biases and the head."""


def prunable(params: PyTree, patterns: Sequence[str] = PRUNABLE, *, option: str = "prunable") -> PyTree:
    """The parameters that may be pruned, with None in place of the others.

    `jax.tree.map` passes over None, so the result maps to scores and masks directly.

    Args:
      params: arrays, or anything with a shape.
      patterns: shell patterns over whole '/'-joined names; `*` also spans '/'.
      option: the name under which a person gave the patterns.

    Raises:
      InputError: if a pattern matches no parameter, or matches a vector.
    """
    shapes = {name: leaf.shape for name, leaf in named_leaves(params)}
    unmatched = [p for p in patterns if not any(fnmatchcase(name, p) for name in shapes)]
    if unmatched:
        raise InputError(
            f"{option}: no parameter is named by {', '.join(map(repr, unmatched))}; there are:\n"
            + listing(sorted(shapes), limit=40)
        )
    chosen = {name for name in shapes if any(fnmatchcase(name, p) for p in patterns)}
    vectors = sorted(name for name in chosen if len(shapes[name]) < 2)
    if vectors:
        raise InputError(
            f"{option}: only matrices can be chosen; set patterns that leave out these vectors:\n"
            + listing([f"{name} {shapes[name]}" for name in vectors])
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path_name(path) in chosen else None, params, is_leaf=is_stand_in
    )


def dense_masks(params: PyTree, patterns: Sequence[str] = PRUNABLE) -> Masks:
    """Masks that keep every weight, each laid out over the devices as its weight."""
    return jax.tree.map(lambda w: jnp.ones_like(w, dtype=bool), prunable(params, patterns))


def masks_from_zeros(params: PyTree, patterns: Sequence[str] = PRUNABLE) -> Masks:
    """Masks that keep the weights that are not 0: those of a model that was pruned before."""
    return jax.tree.map(lambda w: w != 0, prunable(params, patterns))


def apply_masks(tree: PyTree, masks: Masks) -> PyTree:
    """`tree` with exact zeros where the masks are False, whatever stood there."""
    return jax.tree.map(
        lambda leaf, mask: leaf if mask is None else jnp.where(mask, leaf, jnp.zeros_like(leaf)), tree, masks
    )


def masked_part(tree: PyTree, masks: Masks) -> PyTree:
    """`tree` with None wherever the masks have None."""
    return jax.tree.map(lambda leaf, mask: None if mask is None else leaf, tree, masks)


def renewed_where(due: Bool[Array, ""], renew: Callable[[Masks], Masks], masks: Masks) -> Masks:
    """`renew(masks)` where it is due, else `masks`, where they lie.

    A loop of one turn or none: what a branch leaves as it is, XLA copies.
    """
    return jax.lax.while_loop(
        lambda turn: turn[0], lambda turn: (jnp.zeros((), bool), renew(turn[1])), (due, masks)
    )[1]


@jax.jit
def mask_sparsity(masks: Masks) -> Float[Array, ""]:
    """Share of the prunable weights that the masks remove."""
    leaves = jax.tree.leaves(masks)
    total = sum(leaf.size for leaf in leaves)
    # Means of each array: a count of all weights may exceed 32 bits.
    return sum(jnp.mean(~leaf, dtype=jnp.float32) * (leaf.size / total) for leaf in leaves)
