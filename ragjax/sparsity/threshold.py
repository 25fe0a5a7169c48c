"""Selection of exactly k lowest scores by bisection: no sort, no gather, the same on any mesh.

A sort or top-k of a sharded array brings it together on every device. A threshold needs only sums:
halve the range of the float's bits until exactly k scores lie at or below it, and where equal scores
stand on both sides of the cut, halve the range of their places in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32

_SIGN = np.uint32(0x80000000)


def ordered_bits(scores: Float[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Unsigned integers in the order of the float32 scores; 0.0 and -0.0 are alike."""
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    bits = jnp.where(bits == _SIGN, jnp.uint32(0), bits)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def lowest(
    scores: Sequence[Float[Array, "..."]], count: UInt32[Array, ""] | int, axis: tuple[int, ...] | None = None
) -> list[Bool[Array, "..."]]:
    """Marks exactly `count` lowest scores; of equal scores, those that come first.

    Args:
      scores: arrays that are ranked together, fewer than 2**32 scores in all. -inf goes first, +inf
        last; a NaN with a plain sign comes after +inf.
      count: how many of each group are marked; may be traced.
      axis: axes that make up a group, the others are groups of their own; none: all scores of all
        arrays are one group.

    Returns:
      True at the lowest scores, one array for each in `scores`.
    """
    keys = [ordered_bits(s) for s in scores]
    places, size = _places([s.shape for s in scores], axis)
    wanted = jnp.uint32(count)

    def total(marked: Sequence[Bool[Array, "..."]]) -> UInt32[Array, "..."]:
        counts = (jnp.sum(m, axis, dtype=jnp.uint32, keepdims=True) for m in marked)
        return sum(counts, start=jnp.uint32(0))

    groups = jnp.zeros_like(total([k == 0 for k in keys]))
    bar = _bisect(lambda t: total([k <= t for k in keys]), wanted, groups, ~groups)
    missing = wanted - total([k < bar for k in keys])
    # Where all that equal the bar go, or none of them, their places need no search.
    end = jnp.where(missing == 0, jnp.uint32(0), jnp.uint32(size))
    start = jnp.where(total([k == bar for k in keys]) == missing, end, jnp.uint32(0))
    cut = _bisect(
        lambda i: total([(k == bar) & (p < i) for k, p in zip(keys, places, strict=True)]),
        missing,
        start,
        end,
    )
    return [(k < bar) | ((k == bar) & (p < cut)) for k, p in zip(keys, places, strict=True)]


def _places(
    shapes: Sequence[tuple[int, ...]], axis: tuple[int, ...] | None
) -> tuple[list[UInt32[Array, "..."]], int]:
    """The place of every score within its group, in row-major order, and the size of a group."""
    places, size = [], 0
    for shape in shapes:
        axes = range(len(shape)) if axis is None else sorted(a % len(shape) for a in axis)
        stride = math.prod(shape[a] for a in axes)
        place = jnp.full(shape, size, jnp.uint32)
        size += stride
        for a in axes:
            stride //= max(shape[a], 1)
            place += jax.lax.broadcasted_iota(jnp.uint32, shape, a) * jnp.uint32(stride)
        places.append(place)
    return places, size


def _bisect(
    total: Callable[[UInt32[Array, "..."]], UInt32[Array, "..."]],
    count: UInt32[Array, "..."],
    low: UInt32[Array, "..."],
    high: UInt32[Array, "..."],
) -> UInt32[Array, "..."]:
    """A bar in [low, high] with total(bar) == count, or the least with total(bar) > count."""

    def halve(bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        found = total(middle)
        return (
            jnp.where(found == count, middle, jnp.where(found < count, middle + 1, low)),
            jnp.where(found >= count, middle, high),
        )

    return jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (low, high))[1]
