"""Patterns: among which weights the lowest scores are looked for.

Kernels are [..., in, out]: the last two axes are one matrix, what stands before them are layers,
each ranked on its own. An output row holds the weights of one output unit: a column of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt32

from ragjax.config import Sparsity
from ragjax.errors import InputError, listing
from ragjax.models.names import path_name
from ragjax.sparsity.masks import Masks
from ragjax.sparsity.threshold import lowest, ordered_bits

Scores: TypeAlias = PyTree[Float[Array, "..."]]
Share = float | Float[Array, ""]
Pattern = Callable[[Scores, float, Share], Masks]
"""From scores, the sparsity in the end, and the share of it that is due now, to masks."""


def removed(size: int, target: float, share: Share = 1.0) -> UInt32[Array, ""]:
    """How many of `size` weights go: round(size * target) in the end, before that its share, rounded down.

    Args:
      size: weights that are ranked together.
      target: sparsity in the end.
      share: how much of the target is due, in [0, 1]; may be traced.

    Returns:
      The count, exact where `share` is 1 however many weights there are.
    """
    final = round(size * target)
    due = jnp.minimum(jnp.floor(jnp.float32(final) * share).astype(jnp.uint32), jnp.uint32(final))
    return jnp.where(jnp.float32(share) >= 1, jnp.uint32(final), due)


def per_tensor(scores: Scores, target: float, share: Share = 1.0) -> Masks:
    """Removes the lowest scores of each matrix of each layer.

    Args:
      scores: arrays [..., in, out].
      target: sparsity in the end, the same for every matrix.
      share: how much of the target is due, in [0, 1]; may be traced.

    Returns:
      Masks, False at exactly `removed(in * out, target, share)` weights of each matrix.
    """

    def mask(s):
        return ~lowest([s], removed(s.shape[-2] * s.shape[-1], target, share), (-2, -1))[0]

    return jax.tree.map(mask, scores)


def per_row(scores: Scores, target: float, share: Share = 1.0) -> Masks:
    """Removes the lowest scores among the inputs of each output unit.

    Args:
      scores: arrays [..., in, out].
      target: sparsity in the end, the same for every output unit.
      share: how much of the target is due, in [0, 1]; may be traced.

    Returns:
      Masks, False at exactly `removed(in, target, share)` weights of each output unit.
    """
    return jax.tree.map(lambda s: ~lowest([s], removed(s.shape[-2], target, share), (-2,))[0], scores)


def over_model(scores: Scores, target: float, share: Share = 1.0) -> Masks:
    """Removes the lowest scores of all matrices together.

    Args:
      scores: arrays; of equal scores those of the first parameter by name go first.
      target: sparsity of all of them together in the end.
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


def n_of_m(scores: Scores, target: float, share: Share = 1.0, *, m: int) -> Masks:
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
    count = removed(m, target, share)

    def mask(s):
        *layers, inputs, outputs = s.shape
        keys = ordered_bits(s).reshape(*layers, inputs // m, m, outputs)
        place = jax.lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 2)
        rank = jnp.zeros(keys.shape, jnp.uint32)
        for other in range(m):
            key = keys[..., other : other + 1, :]
            rank += (key < keys) | ((key == keys) & (other < place))
        return (rank >= count).reshape(s.shape)

    return jax.tree.map(mask, scores)


PATTERNS: dict[str, Callable[[Sparsity], Pattern]] = {
    "tensor": lambda config: per_tensor,
    "row": lambda config: per_row,
    "global": lambda config: over_model,
    "n_of_m": lambda config: partial(n_of_m, m=config.m),
}
"""Patterns by their name in the config; each is built from the config."""
