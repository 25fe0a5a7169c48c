"""The device's side of slots: a batch of sequences, each of its own age, length and options.

A sequence stands at the beginning of its row of the caches, so that all have no padding and each has its
own place. What a row holds behind its place belongs to nobody: it is overwritten before it is seen.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ragjax.config import Decoding
from ragjax.generation import log_probs
from ragjax.generation.decoding import Settings, fed, read, tokens_of
from ragjax.generation.filters import Filters, penalized
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.prompts import Described
from ragjax.generation.request import ends_of
from ragjax.generation.sampling import are_ends, keys_of, next_token, sequence_keys
from ragjax.models.buffers import put
from ragjax.models.decoder import KeyValues, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.key_values import alone, batched, empty_buffer
from ragjax.parallel.pin import pin_heads

MOST_TOKENS = 16
"""Tokens of each sequence in one call of the device: by then what it costs to ask is spread thin."""
ENDS = 8
"""Token ids the device knows as ends of a sequence; where there are more, the host ends it a little later."""


class Seats(NamedTuple):
    """Sequences under way."""

    cache: tuple[KeyValues, ...]
    """Of each layer: prompt and new tokens except the last, from place 0 on."""
    place: Int[Array, " slots"]
    """Where the last token will stand."""
    last: Int[Array, " slots"]
    """The last token, which no layer has read."""
    written: Int[Array, " slots"]
    """New tokens so far."""
    left: Int[Array, " slots"]
    """New tokens that may follow; 0 where a sequence has ended, or there is none."""
    seen: Bool[Array, "slots vocab"]
    """Tokens of the prompt and new ones."""
    settings: Settings
    """One value a sequence; end tokens are [slots, ends]."""


def settings_of(
    temperature: Any, top_k: Any, top_p: Any, min_p: Any, penalty: Any, seed: Any, row: Any, eos: Any
) -> Settings:
    """The settings of one sequence, from plain numbers and the ids that end it."""
    one = partial(jnp.full, 1)
    return Settings(
        one(temperature, jnp.float32),
        keys_of(jax.random.key(seed), one(row, jnp.int32)),
        jnp.asarray(eos, jnp.int32)[None],
        Filters(one(top_k, jnp.int32), one(top_p, jnp.float32), one(min_p, jnp.float32)),
        one(penalty, jnp.float32),
    )


def settings_for(model: Described, options: Decoding, row: int) -> Settings:
    """The settings of one sequence, from what is asked of the model.

    Args:
      model: whose ends of a text count.
      options: how tokens are chosen.
      row: number by which the sequence draws.
    """
    ends = np.full(ENDS, -1, np.int32)
    known = ends_of(model, options)[:ENDS]
    ends[: len(known)] = known
    return _settings_of(
        options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty,
        options.seed, row, ends,
    )  # fmt: skip


_settings_of = jax.jit(settings_of)


@partial(jax.jit, static_argnames=("config", "count", "room", "ends", "dtype"))
def empty_seats(*, config: DecoderConfig, count: int, room: int, ends: int, dtype: Any) -> Seats:
    """Seats that nobody has taken.

    Args:
      config: the architecture.
      count: how many.
      room: tokens each holds.
      ends: token ids that may end a sequence.
      dtype: type in which keys and values are kept.
    """
    cache = empty_cache(config, count, room, dtype)
    return seats_alone(count, ends, config.vocab_size)._replace(cache=cache)


def empty_cache(config: DecoderConfig, count: int, room: int, dtype: Any) -> tuple[KeyValues, ...]:
    """Of each layer room for the keys and values of so many sequences and tokens."""
    shape = (count, config.key_value_heads, room, config.head_width)
    return tuple(
        jax.tree.map(pin_heads, KeyValues(empty_buffer(shape, dtype), empty_buffer(shape, dtype)))
        for _ in range(config.layers)
    )


def seats_alone(count: int, ends: int, vocab_size: int) -> Seats:
    """Seats that nobody has taken, whose keys and values are elsewhere."""
    numbers = jnp.zeros(count, jnp.int32)
    one = settings_of(0.0, 0, 1.0, 0.0, 1.0, 0, 0, jnp.full(ends, -1))
    return Seats(
        (), numbers, numbers, numbers, numbers, jnp.zeros((count, vocab_size), bool),
        jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), one),
    )  # fmt: skip


@partial(jax.jit, static_argnames="config", donate_argnames="seats")
def sit_down(
    params: Params,
    seats: Seats,
    slot: Int[Array, ""],
    prompt: Int[Array, "1 length"],
    padding: Int[Array, " 1"],
    *,
    config: DecoderConfig,
) -> tuple[Seats, Float[Array, "1 vocab"]]:
    """Reads a prompt into a seat: the seats, and the scores of the token that follows, for `begin`.

    Args:
      params: with stacked layers, or a tuple of them.
      seats: consumed.
      slot: whose seat.
      prompt: flush right; programs differ by its length.
      padding: places before it.
      config: the architecture.
    """
    scores, cache = seated(params, seats.cache, slot, prompt, padding, config)
    seen = tokens_of(prompt, padding, config.vocab_size)
    return seats._replace(
        cache=cache,
        place=seats.place.at[slot].set(prompt.shape[1] - padding[0]),
        seen=seats.seen.at[slot].set(seen[0]),
    ), scores


def seated(
    params: Params,
    cache: tuple[KeyValues, ...],
    slot: Int[Array, ""],
    prompt: Int[Array, "1 length"],
    padding: Int[Array, " 1"],
    config: DecoderConfig,
) -> tuple[Float[Array, "1 vocab"], tuple[KeyValues, ...]]:
    """Scores of the token after a prompt, and the caches with its keys from place 0 of a slot on."""
    scores, stacked = read(params, prompt, padding, config=config, dtype=cache[0].key.dtype)

    def placed(layer: int, held: jax.Array, fresh: jax.Array) -> jax.Array:
        at_front = jnp.roll(fresh[layer], -padding[0], axis=2)
        return pin_heads(jax.lax.dynamic_update_slice(held, at_front, (slot, 0, 0, 0)))

    return scores, tuple(
        jax.tree.map(partial(placed, layer), held, stacked) for layer, held in enumerate(cache)
    )


@partial(jax.jit, static_argnames="alternatives", donate_argnames="seats")
def begin(
    seats: Seats,
    slot: Int[Array, ""],
    scores: Float[Array, "1 vocab"],
    limit: Int[Array, ""],
    settings: Settings,
    *,
    alternatives: int | None,
) -> tuple[Seats, Int[Array, " 1"], LogProbs | None]:
    """Chooses the token that follows a prompt: the seats, the token, and its log-probs.

    Args:
      seats: consumed.
      slot: whose seat.
      scores: from `sit_down`.
      limit: new tokens at most.
      settings: of one sequence, with a first axis of 1.
      alternatives: tell the log-probs of the token, and of so many likeliest; none: tell none.
    """
    token, told = first_token(scores, seats.seen[slot], settings, alternatives)
    left = jnp.where(are_ends(token, settings.eos)[0], 0, limit - 1)
    seats = seats._replace(
        last=seats.last.at[slot].set(token[0]),
        written=seats.written.at[slot].set(1),
        left=seats.left.at[slot].set(left),
        seen=seats.seen.at[slot, token[0]].set(True),
        settings=with_settings(seats.settings, slot, settings),
    )
    return seats, token, told


def first_token(
    scores: Float[Array, "1 vocab"],
    seen: Bool[Array, " vocab"],
    settings: Settings,
    alternatives: int | None,
) -> tuple[Int[Array, " 1"], LogProbs | None]:
    """The token that follows a prompt, and its log-probs.

    Args:
      scores: of the token.
      seen: tokens of the prompt.
      settings: of one sequence, with a first axis of 1.
      alternatives: as for `begin`.
    """
    token = chosen(scores, seen[None], jnp.zeros(1, jnp.int32), settings)
    record = log_probs.empty(1, 1, alternatives)
    return token, log_probs.noted(record, scores[:, None], token[:, None], jnp.int32(0))


def with_settings(held: Settings, slot: Int[Array, ""], own: Settings) -> Settings:
    """The settings of all slots with those of one sequence, which have a first axis of 1, in its slot."""
    return jax.tree.map(lambda held, own: held.at[slot].set(own[0]), held, own)


@partial(jax.jit, static_argnames=("config", "alternatives"), donate_argnames="seats")
def write_on(
    params: Params,
    layers: tuple[Params, ...],
    seats: Seats,
    most: Int[Array, ""],
    *,
    config: DecoderConfig,
    alternatives: int | None,
) -> tuple[Seats, Int[Array, "slots new"], LogProbs | None]:
    """Goes on until each sequence has so many more tokens or has ended.

    Args:
      params: for the embedding, the last norm and the head.
      layers: from `laid_out`.
      seats: consumed.
      most: tokens to add, at most `MOST_TOKENS`.
      config: the architecture.
      alternatives: tell the log-probs of the tokens, and of so many likeliest; none: tell none.

    Returns:
      The seats, the new tokens of each with -1 where there are none, and their log-probs.
    """
    count = len(seats.left)
    none = jnp.zeros(count, jnp.int32)

    def going(carry):
        i, seats, *_ = carry
        return (i < most) & (seats.left > 0).any()

    def step(carry):
        i, seats, tokens, record = carry
        live = seats.left > 0
        # What has ended reads one key, and writes where the next sequence begins anew.
        place = jnp.where(live, seats.place, 0)
        scores, cache = fed(params, layers, seats.cache, seats.last[:, None], none, place, config=config)
        scores = scores[:, 0]
        onward, token = advanced(seats._replace(cache=cache), scores, live)
        return (
            i + 1,
            onward,
            put(tokens, jnp.where(live, token, -1)[:, None], i),
            log_probs.noted(record, scores[:, None], token[:, None], i),
        )

    tokens = jnp.full((count, MOST_TOKENS), -1, jnp.int32)
    record = log_probs.empty(count, MOST_TOKENS, alternatives)
    seats = seats._replace(cache=alone(seats.cache))
    _, seats, tokens, record = jax.lax.while_loop(going, step, (jnp.int32(0), seats, tokens, record))
    return seats._replace(cache=batched(seats.cache)), tokens, record


def advanced(
    seats: Seats, scores: Float[Array, "slots vocab"], live: Bool[Array, " slots"]
) -> tuple[Seats, Int[Array, " slots"]]:
    """The seats with one more token of each live sequence, and what was chosen for all."""
    token = chosen(scores, seats.seen, seats.written, seats.settings)
    left = jnp.where(are_ends(token, seats.settings.eos), 0, seats.left - 1)
    return Seats(
        seats.cache,
        seats.place + live,
        jnp.where(live, token, seats.last),
        seats.written + live,
        jnp.where(live, left, seats.left),
        seats.seen.at[jnp.arange(len(token)), token].max(live),
        seats.settings,
    ), token


@partial(jax.jit, donate_argnames="left")
def stand_up(left: Int[Array, " slots"], slot: Int[Array, ""]) -> Int[Array, " slots"]:
    """`left` without the sequence in a slot."""
    return left.at[slot].set(0)


def chosen(
    scores: Float[Array, "batch vocab"],
    seen: Bool[Array, "batch vocab"],
    written: Int[Array, " batch"],
    settings: Settings,
) -> Int[Array, " batch"]:
    """The token of each sequence that follows so many new ones."""
    assert settings.penalty is not None
    keys = partial(sequence_keys, settings.key, len(written), written)
    return next_token(penalized(scores, seen, settings.penalty), keys, settings.temperature, settings.filters)
