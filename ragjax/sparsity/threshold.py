"""Selection of exactly k lowest scores by bisection: no sort, no gather, the same on any mesh.

A sort or top-k of a sharded array brings it together on every device. A threshold needs only sums:
narrow the range of the float's bits until exactly k scores lie at or below it, and where equal scores
stand on both sides of the cut, narrow the range of their places in the same way. A pass over the scores
counts for four thresholds at once, and so leaves a fifth of the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32

_SIGN = np.uint32(0x80000000)

Key: TypeAlias = UInt32[Array, "..."]
"""Scores as integers of the same order, places, counts and thresholds of either."""


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

    def total(mark: Callable[[Key, Key, Key], Bool[Array, "..."]], bars: Sequence[Key]) -> list[Key]:
        counts = [_counts([mark(k, p, t) for t in bars], axis) for k, p in zip(keys, places, strict=True)]
        return [sum(each, start=jnp.uint32(0)) for each in zip(*counts, strict=True)]

    zero = jnp.zeros_like(total(lambda k, p, t: k == t, [jnp.uint32(0)])[0])
    bar = _search(partial(total, lambda k, p, t: k <= t), wanted, zero, ~zero)
    below, upto = total(lambda k, p, t: k <= t, [bar - 1, bar])
    missing = wanted - jnp.where(bar == 0, 0, below)
    # Where all that equal the bar go, or none of them, their places need no search.
    end = jnp.where(missing == 0, jnp.uint32(0), jnp.uint32(size))
    start = jnp.where(upto == wanted, end, jnp.uint32(0))
    cut = _search(partial(total, lambda k, p, i: (k == bar) & (p < i)), missing, start, end)
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


_PROBES = 4
"""Thresholds counted for in one pass."""
_BITS = 16 // _PROBES
"""Bits of a count that shares a 16-bit number with those of the other thresholds."""


def _counts(marks: Sequence[Bool[Array, "..."]], axis: tuple[int, ...] | None) -> list[Key]:
    """How many are marked of each group, for up to four markings of one array, in one pass over it.

    The first few inputs are added as small numbers packed into 16 bits. XLA's CPU backend makes one loop of
    that and of the comparisons behind the marks; a plain sum it would write out and read again, at a tenth
    of the speed.
    """
    shape = marks[0].shape
    inputs = shape[-2] if len(shape) > 1 else 1
    along = len(shape) > 1 and (axis is None or -2 in axis)
    few = next(n for n in (8, *range(2**_BITS - 1, 0, -1)) if inputs % n == 0) if along else 1
    packed = sum((m.astype(jnp.uint16) << (_BITS * i) for i, m in enumerate(marks)), start=jnp.uint16(0))
    if few > 1:
        parts = packed.reshape(*shape[:-2], inputs // few, few, shape[-1])
        packed = jnp.sum(parts, -2, dtype=jnp.uint16)
    each = ((packed >> (_BITS * i)) & (2**_BITS - 1) for i in range(len(marks)))
    return [jnp.sum(counts, axis, dtype=jnp.uint32, keepdims=True) for counts in each]


def _search(total: Callable[[list[Key]], list[Key]], count: Key, low: Key, high: Key) -> Key:
    """A bar in [low, high] with total(bar) == count, or the least with total(bar) > count."""

    def narrow(bounds: tuple[Key, Key]) -> tuple[Key, Key]:
        low, high = bounds
        part, rest = (high - low) // (_PROBES + 1), (high - low) % (_PROBES + 1)
        bars = [low + part * i + rest * i // (_PROBES + 1) for i in range(1, _PROBES + 1)]
        for bar, found in reversed(list(zip(bars, total(bars), strict=True))):
            low = jnp.where(found < count, jnp.maximum(low, bar + 1), jnp.where(found == count, bar, low))
            high = jnp.where(found >= count, bar, high)
        return low, high

    return jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), narrow, (low, high))[1]
