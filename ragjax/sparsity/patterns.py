"""Patterns: among which weights the lowest scores are looked for.

Kernels are [..., in, out]: the last two axes are one matrix, what stands before them are layers,
each ranked on its own. An output row holds the weights of one output unit: a column of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

from ragjax.errors import InputError, listing
from ragjax.models.names import path_name
from ragjax.sparsity.masks import Masks
from ragjax.sparsity.scores import Scores
from ragjax.sparsity.threshold import lowest, ordered_bits

Share = float | Float[Array, ""]
Target: TypeAlias = float | Float[np.ndarray, " layers"] | Float[Array, " layers"] | PyTree
"""Sparsity in the end: a number, one for each layer of a parameter, or a tree of such for each parameter."""
Pattern = Callable[[Scores, Target, Share], Masks]
"""From scores, the sparsity in the end, and the share of it that is due now, to masks."""


def removed(
    size: int, target: float | Float[np.ndarray, "*layers"] | Float[Array, "*layers"], share: Share = 1.0
) -> UInt32[Array, "*layers"]:
    """How many of `size` weights go: round(size * target) in the end, before that its share, rounded down.

    Args:
      size: weights that are ranked together.
      target: sparsity in the end; may be traced.
      share: how much of the target is due, in [0, 1]; may be traced.

    Returns:
      The count where `share` is 1: exact however many weights there are, or, where `target` is traced,
      as exact as its float32 is.
    """
    if isinstance(target, jax.Array):
        final = jnp.round(size * target).astype(jnp.uint32)
    else:
        final = jnp.asarray(np.rint(size * np.asarray(target, np.float64)).astype(np.uint32))
    due = jnp.minimum(jnp.floor(final.astype(jnp.float32) * share).astype(jnp.uint32), final)
    return jnp.where(jnp.float32(share) >= 1, final, due)


def per_tensor(scores: Scores, target: Target, share: Share = 1.0) -> Masks:
    """Removes the lowest scores of each matrix of each layer.

    Args:
      scores: arrays [..., in, out].
      target: sparsity of each matrix in the end.
      share: how much of the target is due, in [0, 1]; may be traced.

    Returns:
      Masks, False at exactly `removed(in * out, target, share)` weights of each matrix.
    """

    def mask(s, target):
        count = removed(s.shape[-2] * s.shape[-1], target, share)
        return ~lowest([s], count[..., None, None], (-2, -1))[0]

    return jax.tree.map(mask, scores, jax.tree.broadcast(target, scores))


def per_row(scores: Scores, target: Target, share: Share = 1.0) -> Masks:
    """Removes the lowest scores among the inputs of each output unit.

    Args:
      scores: arrays [..., in, out].
      target: sparsity of each output unit in the end.
      share: how much of the target is due, in [0, 1]; may be traced.

    Returns:
      Masks, False at exactly `removed(in, target, share)` weights of each output unit.
    """

    def mask(s, target):
        return ~lowest([s], removed(s.shape[-2], target, share)[..., None, None], (-2,))[0]

    return jax.tree.map(mask, scores, jax.tree.broadcast(target, scores))


def over_model(scores: Scores, target: Target, share: Share = 1.0) -> Masks:
    """Removes the lowest scores of all matrices together.

    Args:
      scores: arrays; of equal scores those of the first parameter by name go first.
      target: sparsity of all of them together in the end: one number.
      share: how much of the target is due, in [0, 1]; may be traced.

    Returns:
      Masks, False at exactly `removed(size of all, target, share)` weights.

    Raises:
      InputError: if there are 2**32 weights or more.
    """
    leaves, structure = jax.tree.flatten(scores)
    size = sum(s.size for s in leaves)
    if size >= 2**32:
        raise InputError(
            f"the pattern 'global' ranks fewer than {2**32:,} weights together, found {size:,}: "
            "use 'tensor' or 'row', or narrow `prunable`"
        )
    masks = [~low for low in lowest(leaves, removed(size, target, share))]
    return jax.tree.unflatten(structure, masks)


def per_block(
    scores: Scores, target: Target, share: Share = 1.0, *, block: tuple[int, int] = (8, 128)
) -> Masks:
    """Removes the blocks of each matrix whose weights score lowest on average.

    Args:
      scores: arrays [..., in, out]; blocks at their ends may be smaller.
      target: share of the blocks of each matrix that goes in the end.
      share: how much of the target is due, in [0, 1]; may be traced.
      block: inputs and outputs of a block; 8 x 128 and 128 x 128 are the tiles of a TPU.

    Returns:
      Masks, False at exactly `removed(blocks, target, share)` blocks of each matrix.
    """
    rows, columns = block

    def mask(s, target):
        *layers, inputs, outputs = s.shape
        high, wide = -(-inputs // rows), -(-outputs // columns)
        ends = [(0, 0)] * len(layers) + [(0, high * rows - inputs), (0, wide * columns - outputs)]

        def summed(x):
            return jnp.pad(x, ends).reshape(*layers, high, rows, wide, columns).sum((-3, -1))

        mean = summed(s) / summed(jnp.ones_like(s))
        kept = ~lowest([mean], removed(high * wide, target, share)[..., None, None], (-2, -1))[0]
        return jnp.repeat(jnp.repeat(kept, rows, -2), columns, -1)[..., :inputs, :outputs]

    return jax.tree.map(mask, scores, jax.tree.broadcast(target, scores))


def n_of_m(scores: Scores, target: Target, share: Share = 1.0, *, m: int) -> Masks:
    """Removes the lowest scores of each m consecutive inputs of an output unit.

    Args:
      scores: arrays [..., in, out].
      target: sparsity in the end: 1 - n / m.
      share: how much of the target is due, in [0, 1]; may be traced.
      m: size of a group.

    Returns:
      Masks, False at exactly `removed(m, target, share)` weights of each group.

    Raises:
      InputError: if the inputs of a matrix do not divide into groups of m.
    """
    odd = [
        f"{path_name(path)}: {s.shape[-2]} inputs"
        for path, s in jax.tree_util.tree_leaves_with_path(scores)
        if s.shape[-2] % m
    ]
    if odd:
        raise InputError(
            f"the pattern 'n_of_m' needs inputs divisible by m = {m}; choose another m, or a `prunable` "
            f"without these:\n{listing(odd)}"
        )

    def mask(s, target):
        count = removed(m, target, share)[..., None, None, None]
        *layers, inputs, outputs = s.shape
        keys = ordered_bits(s).reshape(*layers, inputs // m, m, outputs)
        place = jax.lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 2)
        rank = jnp.zeros(keys.shape, jnp.uint32)
        for other in range(m):
            key = keys[..., other : other + 1, :]
            rank += (key < keys) | ((key == keys) & (other < place))
        return (rank >= count).reshape(s.shape)

    return jax.tree.map(mask, scores, jax.tree.broadcast(target, scores))


class PatternFields(Protocol):
    """What a pattern is built from: a config with these fields."""

    @property
    def m(self) -> int:
        """n_of_m: consecutive inputs in a group."""

    @property
    def block(self) -> tuple[int, int]:
        """block: inputs and outputs of a block."""


PATTERNS: dict[str, Callable[[PatternFields], Pattern]] = {
    "tensor": lambda config: per_tensor,
    "row": lambda config: per_row,
    "global": lambda config: over_model,
    "n_of_m": lambda config: partial(n_of_m, m=config.m),
    "block": lambda config: partial(per_block, block=config.block),
}
"""Patterns by their name in the config; each is built from the config."""
