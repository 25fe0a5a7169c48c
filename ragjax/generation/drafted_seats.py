"""The device's side of slots in which a draft helps the model: the caches of both, each sequence at a place
of its own in them, as in `ragjax.generation.seats`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.generation import log_probs
from ragjax.generation.decoding import Settings, tokens_of
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.network import Network
from ragjax.generation.sampling import are_ends
from ragjax.generation.seats import (
    MOST_TOKENS,
    empty_cache,
    first_token,
    seated,
    seats_alone,
    with_settings,
)
from ragjax.generation.slots import Drafts
from ragjax.generation.speculative import Configs, Drafting, Pace, no_tally, one_round, rounds_while
from ragjax.models.buffers import take
from ragjax.models.decoder import Params


class DraftedSeats(NamedTuple):
    """Sequences under way; those that nobody has taken count as ended."""

    state: Drafting
    limit: Int[Array, " slots"]
    """New tokens of each at most."""
    settings: Settings
    """One value a sequence; end tokens are [slots, ends]."""


@partial(jax.jit, static_argnames=("configs", "count", "room", "ends", "menu", "dtype"))
def empty_seats(
    *, configs: Configs, count: int, room: int, ends: int, menu: tuple[int, ...], dtype: Any
) -> DraftedSeats:
    """Seats that nobody has taken.

    Args:
      configs: both architectures.
      count: how many.
      room: tokens each holds, besides those that are drafted.
      ends: token ids that may end a sequence.
      menu: lengths of drafts.
      dtype: type in which keys and values are kept.
    """
    alone = seats_alone(count, ends, configs.model.vocab_size)
    none, spare = jnp.zeros(count, jnp.int32), max(menu) + 2
    state = Drafting(
        model=empty_cache(configs.model, count, room + spare, dtype),
        draft=empty_cache(configs.draft, count, room + spare, dtype),
        padding=none, begins=none, text=jnp.zeros((count, room + spare), jnp.int32), written=none + 1,
        behind=none, done=jnp.ones(count, bool), seen=alone.seen, log_probs=None, tally=no_tally(count),
    )  # fmt: skip
    return DraftedSeats(state, none, alone.settings)


@partial(jax.jit, static_argnames="configs", donate_argnames="seats")
def sit_down(
    model: Params,
    draft: Params,
    seats: DraftedSeats,
    slot: Int[Array, ""],
    prompt: Int[Array, "1 length"],
    padding: Int[Array, " 1"],
    *,
    configs: Configs,
) -> tuple[DraftedSeats, Float[Array, "1 vocab"]]:
    """Both models read a prompt: the seats, and the scores of the token that follows, for `begin`.

    Args:
      model: parameters of the model, with stacked layers or a tuple of them.
      draft: those of the draft.
      seats: consumed.
      slot: whose seat.
      prompt: flush right; programs differ by its length.
      padding: places before it.
      configs: both architectures.
    """
    state = seats.state
    scores, cache = seated(model, state.model, slot, prompt, padding, configs.model)
    _, own = seated(draft, state.draft, slot, prompt, padding, configs.draft)
    seen = tokens_of(prompt, padding, configs.model.vocab_size)
    state = state._replace(
        model=cache,
        draft=own,
        begins=state.begins.at[slot].set(prompt.shape[1] - padding[0]),
        seen=state.seen.at[slot].set(seen[0]),
    )
    return seats._replace(state=state), scores


@partial(jax.jit, static_argnames="alternatives", donate_argnames="seats")
def begin(
    seats: DraftedSeats,
    slot: Int[Array, ""],
    scores: Float[Array, "1 vocab"],
    limit: Int[Array, ""],
    settings: Settings,
    *,
    alternatives: int | None,
) -> tuple[DraftedSeats, Int[Array, " 1"], LogProbs | None]:
    """Chooses the token that follows a prompt: the seats, the token, and its log-probs.

    Args:
      seats: consumed.
      slot: whose seat.
      scores: from `sit_down`.
      limit: new tokens at most.
      settings: of one sequence, with a first axis of 1.
      alternatives: tell the log-probs of the token, and of so many likeliest; none: tell none.
    """
    state = seats.state
    token, told = first_token(scores, state.seen[slot], settings, alternatives)
    state = state._replace(
        text=state.text.at[slot, 1].set(token[0]),
        written=state.written.at[slot].set(1),
        behind=state.behind.at[slot].set(0),
        done=state.done.at[slot].set(are_ends(token, settings.eos)[0] | (limit <= 1)),
        seen=state.seen.at[slot, token[0]].set(True),
    )
    settled = with_settings(seats.settings, slot, settings)
    return DraftedSeats(state, seats.limit.at[slot].set(limit), settled), token, told


@partial(jax.jit, static_argnames=("configs", "menu", "alternatives"), donate_argnames="seats")
def write_on(
    model: Network,
    draft: Network,
    seats: DraftedSeats,
    most: Int[Array, ""],
    pace: Pace,
    *,
    configs: Configs,
    menu: tuple[int, ...],
    alternatives: int | None,
) -> tuple[DraftedSeats, Int[Array, "slots new"], LogProbs | None, Drafts]:
    """Goes on until one of the sequences has so many more tokens or all have ended.

    Args:
      model: decides.
      draft: proposes.
      seats: consumed.
      most: tokens after which no further round begins, at most `MOST_TOKENS`.
      pace: how far a draft goes.
      configs: both architectures.
      menu: lengths of drafts.
      alternatives: tell the log-probs of the tokens, and of so many likeliest; none: tell none.

    Returns:
      The seats, the new tokens of each with -1 where there are none, their log-probs, and how the drafts of
      each did.
    """
    before, room = seats.state, seats.state.text.shape[1]
    start = before._replace(log_probs=log_probs.empty(len(before.done), room, alternatives))

    def going(state: Drafting):
        return (state.written - before.written < most).all() & ~state.done.all()

    def step(state: Drafting) -> Drafting:
        return one_round(
            model, draft, state, seats.limit, pace, seats.settings, configs=configs, menu=menu, least=1
        )

    state = rounds_while(going, step, start)
    width = min(MOST_TOKENS + max(menu), room - 1)
    fresh = jnp.arange(width) < (state.written - before.written)[:, None]
    tokens = jnp.where(fresh, take(state.text, before.written + 1, width), -1)
    told = jax.tree.map(lambda record: take(record, before.written, width), state.log_probs)
    now, then = state.tally, before.tally
    drafts = Drafts(now.passes - then.passes, now.drafted - then.drafted, now.accepted - then.accepted)
    return seats._replace(state=state._replace(log_probs=None)), tokens, told, drafts


@partial(jax.jit, donate_argnames="done")
def stand_up(done: Bool[Array, " slots"], slot: Int[Array, ""]) -> Bool[Array, " slots"]:
    """`done` without the sequence in a slot."""
    return done.at[slot].set(True)
