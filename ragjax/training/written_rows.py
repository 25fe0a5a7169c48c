"""Between batches and what a student writes: prompts out of the one, and the one out of what was written."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ragjax.data.batches import Batch
from ragjax.generation.rollout import Prompted, Written
from ragjax.parallel.pin import pin_batch


class Rows(NamedTuple):
    """Sequences of which the student wrote the end, flush left."""

    tokens: Int[Array, "rows places"]
    """One more than a sequence of a batch has, for its last target; 0 behind the end."""
    begin: Int[Array, " rows"]
    """Where the written part begins: the length of the prompt."""
    end: Int[Array, " rows"]
    """The place after the last token."""
    factors: Float[Array, "rows seq"] | None
    """What the loss of each target is multiplied with; none: 1."""


def prompts_of(
    batch: Batch, *, longest: int, new_tokens: int | None, one_of_pairs: Key[Array, ""] | None = None
) -> Prompted:
    """The prompts in a batch of text.

    Args:
      batch: arrays [microbatches, batch, seq].
      longest: tokens at the beginning of each sequence that are its prompt; where documents are isolated, as
        many of them as belong to the last document among them.
      new_tokens: how many may follow; none: as many as make the sequence full.
      one_of_pairs: the sequences hold pairs of prompt and completion instead, and this random key chooses
        the prompt of one of each, of at most `longest` tokens. A prompt ends with the token whose target is
        the first that counts.
    """
    tokens = _rows(batch.tokens)
    positions = None if batch.positions is None else _rows(batch.positions)
    last = jnp.full(len(tokens), longest - 1)
    if one_of_pairs is not None:
        counts = _rows(batch.weights) > 0
        ends = counts & ~jnp.pad(counts, ((0, 0), (1, 0)))[:, :-1]
        last = jnp.argmax(jnp.where(ends, jax.random.uniform(one_of_pairs, ends.shape), -1.0), 1)
    length = last + 1 if positions is None else _from(positions, last[:, None])[:, 0] + 1
    padding = longest - length
    place = jnp.arange(longest) - padding[:, None]
    index = (last + 1 - length)[:, None] + place
    room = tokens.shape[1] + 1 - length
    limit = room if new_tokens is None else jnp.minimum(room, new_tokens)
    return Prompted(pin_batch(_from(tokens, index)), padding, limit)


def rows_of(prompted: Prompted, written: Written, *, seq: int) -> Rows:
    """Prompts and what was written after them, as sequences of `seq` tokens and one more."""
    begin = prompted.tokens.shape[1] - prompted.padding
    end = begin + written.length
    place = jnp.arange(seq + 1)[None]
    both = jnp.concatenate([prompted.tokens, written.tokens], 1)
    tokens = _from(both, prompted.padding[:, None] + place)
    factors = None
    if written.ratio is not None:
        factors = _from(written.ratio, place[:, 1:] - begin[:, None])
        factors = jnp.where(_in_written(begin, end, seq), factors, 1.0)
    return Rows(jnp.where(place < end[:, None], tokens, 0), begin, end, factors)


def batch_of(rows: Rows, *, accumulate: int, isolated: bool, alike: bool) -> Batch:
    """The batch in which what was written is learnt, and nothing else.

    Args:
      rows: the sequences.
      accumulate: microbatches the rows are dealt out to.
      isolated: number documents and places, of which each sequence is one.
      alike: every sequence weighs as much as the mean one; else every token weighs 1.

    Returns:
      Arrays [accumulate, batch, seq]; the weights sum to the number of written tokens.
    """
    seq = rows.tokens.shape[1] - 1
    weights = _in_written(rows.begin, rows.end, seq).astype(jnp.float32)
    if alike:
        length = weights.sum(1, keepdims=True)
        weights = weights * (length.mean() / length)

    def dealt(x):
        return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

    segments = jnp.zeros_like(rows.tokens[:, :-1]) if isolated else None
    positions = None if segments is None else segments + jnp.arange(seq, dtype=jnp.int32)
    arrays = Batch(
        rows.tokens[:, :-1], rows.tokens[:, 1:], weights, segments, positions, factors=rows.factors
    )
    return jax.tree.map(dealt, arrays)._replace(written=jnp.ones(accumulate, jnp.float32))


def _rows(x: Array | np.ndarray) -> Array:
    """Microbatches of rows as rows, so that an axis of rows that is split over devices stays so."""
    return pin_batch(jnp.moveaxis(jnp.asarray(x), 0, 1).reshape(-1, x.shape[-1]))


def _from(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, jnp.clip(index, 0, x.shape[1] - 1), 1)


def _in_written(begin: Array, end: Array, seq: int) -> Array:
    """Whether the target of each place was written."""
    target = jnp.arange(1, seq + 1)[None]
    return (begin[:, None] <= target) & (target < end[:, None])
