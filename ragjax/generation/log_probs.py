"""What a model thought of the tokens that were chosen."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ragjax.models.buffers import put


class LogProbs(NamedTuple):
    """Of each new token its log-probability, and the likeliest tokens in its place; of the model itself,
    before penalty, temperature and filters."""

    chosen: Float[Array, "batch room"]
    tokens: Int[Array, "batch room alternatives"]
    values: Float[Array, "batch room alternatives"]


def empty(batch: int, room: int, alternatives: int | None) -> LogProbs | None:
    """Room for the log-probs of `room` tokens and so many alternatives; none where none are asked for."""
    if alternatives is None:
        return None
    shape = (batch, room, alternatives)
    return LogProbs(jnp.zeros(shape[:2]), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))


def noted(
    record: LogProbs | None,
    scores: Float[Array, "batch new vocab"],
    tokens: Int[Array, "batch new"],
    at: Int[Array, "*batch"],
) -> LogProbs | None:
    """`record` with what `scores` say of `tokens`, from index `at` on; none stays none."""
    if record is None:
        return None
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(scores, tokens[..., None], -1) - total
    values, best = jax.lax.top_k(scores, record.tokens.shape[2])
    return LogProbs(
        put(record.chosen, chosen[..., 0], at),
        put(record.tokens, best, at),
        put(record.values, values - total, at),
    )
