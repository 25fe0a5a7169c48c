"""From scores to the next token."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ragjax.generation.filters import Filters, filtered
from ragjax.kernels.highest import first_highest, highest_serves
from ragjax.parallel.pin import several_devices

_BLOCK = 256
"""Tokens whose weights are summed up first, where one is drawn."""


def next_token(
    scores: Float[Array, "batch vocab"],
    keys: Callable[[], Key[Array, " batch"]],
    temperature: Float[Array, "*batch"],
    filters: Filters | None = None,
) -> Int[Array, " batch"]:
    """The likeliest token at temperature 0, else one drawn from softmax(scores / temperature).

    Args:
      scores: logits, without rows that only pad the vocabulary.
      keys: makes a random key for each sequence, where one is needed.
      temperature: at least 0, one value or one for each sequence; all cases are one program.
      filters: which tokens may be drawn; none: all.
    """

    def choose():
        return jnp.where(
            temperature > 0, drawn(warped(scores, temperature, filters), keys()), likeliest(scores)
        )

    # Only the branch taken is computed, so that greedy decoding draws no random numbers.
    return jax.lax.cond(jnp.any(temperature > 0), choose, lambda: likeliest(scores))


def warped(
    scores: Float[Array, "batch *new vocab"], temperature: Float[Array, "*batch"], filters: Filters | None
) -> Float[Array, "batch *new vocab"]:
    """Logits of what is drawn from: over the temperature, and -inf where a filter forbids it.

    Args:
      scores: logits.
      temperature: where it is 0, what comes back is of no use.
      filters: which tokens may be drawn; none: all.
    """
    by = temperature if temperature.ndim == 0 else temperature.reshape(-1, *(1,) * (scores.ndim - 1))
    scaled = scores / jnp.where(by > 0, by, 1.0)
    return scaled if filters is None else filtered(scaled, filters)


def likeliest(scores: Float[Array, "*batch vocab"]) -> Int[Array, "*batch"]:
    """Index of the highest score, the first where several are; what is no number counts for -inf.

    On CPU `jax.export` refuses it where there are kernels: their custom calls are made for this process.
    """
    if scores.dtype != jnp.float32 or several_devices() or not highest_serves(scores.shape[-1]):
        return _first_highest_by_xla(scores)
    # A program may be compiled here for a device that is not.
    rows = jax.lax.stop_gradient(scores).reshape(-1, scores.shape[-1])
    found = jax.lax.platform_dependent(rows, cpu=first_highest, default=_first_highest_by_xla)
    return found.reshape(scores.shape[:-1])


def _first_highest_by_xla(scores: Float[Array, "*batch places"]) -> Int[Array, "*batch"]:
    """`likeliest` in XLA's own operations."""
    # XLA's CPU backend takes as long for one argmax as for eight of these.
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    highest = scores == scores.max(-1, keepdims=True)
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    return jnp.where(highest, places, scores.shape[-1]).min(-1)


def drawn(scores: Float[Array, "batch vocab"], keys: Key[Array, " batch"]) -> Int[Array, " batch"]:
    """One token of each row, drawn from softmax(scores): one random number against the running sum.

    Sums of blocks come first, since a running sum over a whole vocabulary is slow, and so are as many
    random numbers as it has tokens.

    Args:
      scores: logits; -inf is never drawn.
      keys: a random key for each row.
    """
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % _BLOCK))).reshape(len(weights), -1, _BLOCK)
    before = jnp.cumsum(blocks.sum(-1), -1)
    aim = jax.vmap(jax.random.uniform)(keys)[:, None] * before[:, -1:]
    block = _place(before, aim)
    reached = jnp.where(block > 0, jnp.take_along_axis(before, jnp.maximum(block - 1, 0), 1), 0.0)
    inside = jnp.cumsum(jnp.take_along_axis(blocks, block[..., None], 1)[:, 0], -1)
    return (block * _BLOCK + _place(inside, aim - reached))[:, 0]


def _place(sums: jax.Array, aim: jax.Array) -> jax.Array:
    """The first index whose running sum lies above `aim`; where rounding leaves none, the last that adds."""
    last = (sums < sums[:, -1:]).sum(-1, keepdims=True)
    return jnp.minimum((sums <= aim).sum(-1, keepdims=True), last)


def sequence_keys(key: Key[Array, "*batch"], batch: int, step: Int[Array, "*batch"]) -> Key[Array, " batch"]:
    """A key for each sequence and step, the same whatever else is in the batch.

    Args:
      key: of the whole generation; or one of each sequence, from `keys_of`.
      batch: how many sequences there are.
      step: which token is chosen: one for all sequences, or one for each.
    """
    own = key if key.ndim else keys_of(key, jnp.arange(batch))
    return jax.vmap(jax.random.fold_in)(own, jnp.broadcast_to(step, (batch,)))


def are_ends(tokens: Int[Array, "batch *new"], eos: Int[Array, "*batch ends"]) -> Bool[Array, "batch *new"]:
    """Which tokens end their sequence.

    Args:
      tokens: of each sequence.
      eos: token ids that end all sequences, or those that end each; -1 matches none.
    """
    own = eos if eos.ndim == 1 else eos.reshape(len(eos), *(1,) * (tokens.ndim - 1), -1)
    return (tokens[..., None] == own).any(-1)


def keys_of(key: Key[Array, ""], rows: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """The keys of the sequences of these numbers, whatever batches they come in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
