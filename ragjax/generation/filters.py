"""Which tokens may follow: a penalty on repetition, then the likeliest by number, by mass and by ratio.

Thresholds are found by bisection over the bits of the scores, since a sort of a vocabulary takes as long
as a small model's step. A filter that is off is not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_LANES = 256
"""Partial sums of a row; XLA's CPU backend adds up columns many times as fast as rows."""


class Filters(NamedTuple):
    """What may be drawn; arrays, so that a change compiles nothing: one value, or one for each sequence."""

    top_k: Int[Array, "*batch"]
    """How many of the likeliest; 0: all."""
    top_p: Float[Array, "*batch"]
    """Probability of the fewest likeliest that are kept; 1: all."""
    min_p: Float[Array, "*batch"]
    """Least probability over that of the likeliest; 0: all."""


def penalized(
    scores: Float[Array, "batch *new vocab"],
    seen: Bool[Array, "batch *new vocab"],
    penalty: Float[Array, "*batch"],
) -> Float[Array, "batch *new vocab"]:
    """Scores of seen tokens over `penalty` where positive, times it where negative.

    Keskar et al., "CTRL", https://arxiv.org/abs/1909.05858

    Args:
      scores: logits, or log-probabilities.
      seen: tokens of the prompt and those chosen since.
      penalty: 1 changes nothing, and costs nothing.
    """
    by = _by_row(penalty, scores.ndim)

    def apply():
        return jnp.where(seen, jnp.where(scores < 0, scores * by, scores / by), scores)

    return jax.lax.cond(jnp.any(penalty != 1), apply, lambda: scores)


def filtered(scores: Float[Array, "batch *new vocab"], filters: Filters) -> Float[Array, "batch *new vocab"]:
    """`scores` with -inf where a token may not be drawn: by top-k, of those left by top-p, then by min-p.

    Tokens that score alike stay or go together: a tie at the edge of top-k or top-p is kept whole.
    Fan et al., https://arxiv.org/abs/1805.04833 (top-k); Holtzman et al.,
    https://arxiv.org/abs/1904.09751 (top-p); Nguyen et al., https://arxiv.org/abs/2407.01082 (min-p).

    Args:
      scores: logits over the temperature.
      filters: what may be drawn.
    """
    top_k, top_p, min_p = (_by_row(each, scores.ndim) for each in filters)
    scores = jax.lax.cond(jnp.any(top_k > 0), lambda: _top_k(scores, top_k), lambda: scores)
    scores = jax.lax.cond(jnp.any(top_p < 1), lambda: _top_p(scores, top_p), lambda: scores)
    return jax.lax.cond(jnp.any(min_p > 0), lambda: _min_p(scores, min_p), lambda: scores)


def _top_k(scores: jax.Array, count: jax.Array) -> jax.Array:
    count = jnp.where(count > 0, count, scores.shape[-1])
    lanes = _in_lanes(scores, -jnp.inf)

    def enough(bar):
        return _sum(lanes > bar[..., None], jnp.int32) < count

    return jnp.where(scores >= _least(enough, scores), scores, -jnp.inf)


def _top_p(scores: jax.Array, mass: jax.Array) -> jax.Array:
    lanes = _in_lanes(scores, -jnp.inf)
    probabilities = _in_lanes(jax.nn.softmax(scores, axis=-1), 0.0)

    def enough(bar):
        return _sum(jnp.where(lanes <= bar[..., None], probabilities, 0.0), jnp.float32) > 1 - mass

    kept = scores >= _least(enough, scores)
    return jnp.where(kept | (mass >= 1), scores, -jnp.inf)


def _min_p(scores: jax.Array, ratio: jax.Array) -> jax.Array:
    probabilities = jax.nn.softmax(scores, axis=-1)
    return jnp.where(probabilities < ratio * probabilities.max(-1, keepdims=True), -jnp.inf, scores)


def _least(enough: Callable[[jax.Array], jax.Array], scores: jax.Array) -> jax.Array:
    """The least of the scores of each row for which `enough` holds, as it must for all above; at most the
    highest."""
    high = _ordered(scores.max(-1, keepdims=True))
    low = jnp.full_like(high, _ordered(jnp.float32(-jnp.inf)) - 1)

    def halve(_, bounds):
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        # Where no score lies between the two, the middle is the lower one, which is none itself.
        holds = (middle > low) & enough(_scores(middle))
        return jnp.where(holds, low, middle), jnp.where(holds, middle, high)

    return _scores(jax.lax.fori_loop(0, 32, halve, (low, high))[1])


def _ordered(scores: jax.Array) -> jax.Array:
    """Integers in the order of the scores."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _scores(ordered: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(ordered ^ ((ordered >> 31) & 0x7FFFFFFF), jnp.float32)


def _in_lanes(x: jax.Array, fill: float) -> jax.Array:
    short = -x.shape[-1] % _LANES
    filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)], constant_values=fill)
    return filled.reshape(*x.shape[:-1], -1, _LANES)


def _sum(lanes: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return lanes.sum(-2, dtype=dtype).sum(-1, keepdims=True)


def _by_row(value: jax.Array, ndim: int) -> jax.Array:
    """One value, or one a sequence, against arrays of `ndim` axes, the first of sequences."""
    return value if value.ndim == 0 else value.reshape(-1, *(1,) * (ndim - 1))
