"""Speculative decoding on the device: a small model drafts, the model itself reads the draft at once.

The draft is kept as far as the model agrees, and the model's own choice follows it, by the rule of
`ragjax.generation.acceptance`. Sequences of a batch keep different parts of their drafts, so that each has
its own place in the caches; what was not kept is overwritten by what comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ragjax.generation import log_probs
from ragjax.generation.acceptance import judged, place_keys
from ragjax.generation.decoding import Settings, fed, fill, tokens_of
from ragjax.generation.draft_length import best_length, likely
from ragjax.generation.filters import penalized
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.network import Network
from ragjax.generation.sampling import are_ends, next_token, sequence_keys
from ragjax.models.buffers import put, take
from ragjax.models.decoder import KeyValues, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.key_values import alone, batched


class Configs(NamedTuple):
    """The architectures of both models."""

    model: DecoderConfig
    draft: DecoderConfig


class Pace(NamedTuple):
    """How far a draft goes; arrays, so that a change compiles nothing."""

    costs: Float[Array, " lengths"]
    """What a round costs with a draft of each length of the menu."""
    fixed: Int[Array | np.ndarray, ""]
    """Index of the length every round takes; below 0: the one that promises most for its cost."""


class Tally(NamedTuple):
    """What became of the drafts."""

    rounds: Int[Array, ""]
    passes: Int[Array, " batch"]
    """Rounds of each sequence before it had ended."""
    drafted: Int[Array, " batch"]
    """Tokens that were drafted in them."""
    accepted: Int[Array, " batch"]
    """Those of them that were kept."""
    hits: Float[Array, ""]
    """Of late: tokens the model agreed with, older ones counting less."""
    misses: Float[Array, ""]
    """Of late: drafts of which a token was refused."""


class Drafting(NamedTuple):
    """A generation under way."""

    model: tuple[KeyValues, ...]
    """Caches of the model: the prompts, then the new tokens except the last."""
    draft: tuple[KeyValues, ...]
    """Caches of the draft."""
    padding: Int[Array, " batch"]
    """Places before each prompt."""
    begins: Int[Array, " batch"]
    """Place of the first new token."""
    text: Int[Array, "batch room"]
    """New tokens from index 1 on, valid up to `written`."""
    written: Int[Array, " batch"]
    """New tokens of each sequence."""
    behind: Int[Array, " batch"]
    """New tokens but the last that the draft has not read."""
    done: Bool[Array, " batch"]
    """Whether the sequence has ended."""
    seen: Bool[Array, "batch vocab"]
    """Tokens of the prompt and new ones."""
    log_probs: LogProbs | None
    """Of the new tokens, where asked for."""
    tally: Tally


class _Proposal(NamedTuple):
    """What the draft proposes in a round."""

    text: Int[Array, "batch room"]
    """With the proposed tokens behind the last one."""
    scores: Float[Array, "batch places vocab"]
    """Logits of what each was chosen by."""
    cache: tuple[KeyValues, ...]


@partial(jax.jit, static_argnames=("configs", "room", "menu", "cache_dtype", "alternatives"))
def begin(
    model: Params,
    draft: Params,
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    settings: Settings,
    *,
    configs: Configs,
    room: int,
    menu: tuple[int, ...],
    cache_dtype: Any = jnp.float32,
    alternatives: int | None = None,
) -> Drafting:
    """Both models read the prompts, and the model chooses the first new token.

    Args:
      model: parameters of the model, with stacked layers or a tuple of them.
      draft: those of the draft.
      prompts: flush right; what stands in the padding does not matter.
      padding: places before each prompt, less than the length.
      settings: how tokens are chosen, with a penalty of repetition.
      configs: both architectures.
      room: new tokens there is room for.
      menu: lengths of drafts, as for `speculate`.
      cache_dtype: type in which keys and values are kept.
      alternatives: tell log-probs of the new tokens, and of so many likeliest; none: tell none.
    """
    assert settings.penalty is not None
    batch, spare = prompts.shape[0], room + max(menu) + 1
    scores, cache = fill(model, prompts, padding, config=configs.model, room=spare, cache_dtype=cache_dtype)
    _, own = fill(draft, prompts, padding, config=configs.draft, room=spare, cache_dtype=cache_dtype)
    seen = tokens_of(prompts, padding, configs.model.vocab_size)
    keys = partial(sequence_keys, settings.key, batch, jnp.int32(0))
    first = next_token(
        penalized(scores, seen, settings.penalty), keys, settings.temperature, settings.filters
    )
    text = jnp.zeros((batch, 1 + spare), jnp.int32)
    record = log_probs.empty(batch, spare, alternatives)
    return Drafting(
        model=cache,
        draft=own,
        padding=padding,
        begins=jnp.full(batch, prompts.shape[1], jnp.int32),
        text=text.at[:, 1].set(first),
        written=jnp.ones(batch, jnp.int32),
        behind=jnp.zeros(batch, jnp.int32),
        done=are_ends(first, settings.eos),
        seen=seen.at[jnp.arange(batch), first].set(True),
        log_probs=log_probs.noted(record, scores[:, None], first[:, None], jnp.int32(0)),
        tally=no_tally(batch),
    )


@partial(jax.jit, static_argnames=("configs", "menu"), donate_argnames="state")
def speculate(
    model: Network,
    draft: Network,
    state: Drafting,
    count: Int[Array, ""],
    limit: Int[Array, ""],
    rounds: Int[Array, ""],
    pace: Pace,
    settings: Settings,
    *,
    configs: Configs,
    menu: tuple[int, ...],
) -> Drafting:
    """Goes on until every sequence has `count` new tokens or has ended, or as many rounds are over.

    Args:
      model: decides.
      draft: proposes.
      state: consumed.
      count: new tokens wanted of every sequence.
      limit: most new tokens of a sequence, at most the room; a sequence that has them has ended.
      rounds: most rounds.
      pace: how far a draft goes.
      settings: how tokens are chosen, with a penalty of repetition.
      configs: both architectures.
      menu: lengths of drafts to choose from, from short to long; 0: the model alone.
    """
    end = state.tally.rounds + rounds

    def going(state: Drafting):
        return ((state.written < count) & ~state.done).any() & (state.tally.rounds < end)

    def step(state: Drafting) -> Drafting:
        return one_round(model, draft, state, limit, pace, settings, configs=configs, menu=menu)

    return rounds_while(going, step, state)


def rounds_while(
    going: Callable[[Drafting], Bool[Array, ""]], step: Callable[[Drafting], Drafting], state: Drafting
) -> Drafting:
    """A loop of rounds, which copies no cache."""
    begun = state._replace(model=alone(state.model), draft=alone(state.draft))
    state = jax.lax.while_loop(going, step, begun)
    return state._replace(model=batched(state.model), draft=batched(state.draft))


def one_round(
    model: Network,
    draft: Network,
    state: Drafting,
    limit: Int[Array, "*batch"],
    pace: Pace,
    settings: Settings,
    *,
    configs: Configs,
    menu: tuple[int, ...],
    least: int = 0,
) -> Drafting:
    """The state after one draft was made and judged.

    Args:
      model: decides.
      draft: proposes.
      state: what there is.
      limit: most new tokens of a sequence: one number for all, or one for each.
      pace: how far a draft goes.
      settings: how tokens are chosen, with a penalty of repetition; one value each, or one a sequence.
      configs: both architectures.
      menu: lengths of drafts.
      least: tokens the draft reads at least, so that it never stays behind and what it would have
        proposed is known; 0: a draft of no tokens costs nothing.
    """
    assert settings.penalty is not None
    most, batch = max(menu), len(state.written)
    adapted = best_length(menu, pace.costs, likely(state.tally.hits, state.tally.misses))
    choice = jnp.where(pace.fixed < 0, adapted, pace.fixed)
    length = jnp.asarray(menu, jnp.int32)[choice]
    live = ~state.done
    drawing = jnp.broadcast_to(settings.temperature > 0, (batch,)) & live
    proposed = jnp.where(drawing.any(), length + 1, jnp.maximum(length, least))
    keys = place_keys(settings.key, state.written, most + 1)
    proposal = _propose(draft, state, proposed, keys.draft, settings, configs.draft)
    window = take(proposal.text, state.written, most + 2)
    read, tokens = window[:, :-1], window[:, 1:]

    def verify(size: int, carry):
        _, scores, cache = carry
        new, cache = fed(
            model.params, model.layers, cache, read[:, : size + 1], state.padding, _place(state),
            config=configs.model,
        )  # fmt: skip
        return jnp.bool(False), put(scores, new, jnp.int32(0)), cache

    scores, cache = jnp.zeros_like(proposal.scores), state.model
    for i, size in enumerate(menu):
        # Loops of one turn or none, since the branches of a switch would copy the caches.
        _, scores, cache = jax.lax.while_loop(
            lambda carry: carry[0], partial(verify, size), (choice == i, scores, cache)
        )
    adjusted = penalized(scores, _seen_along(state.seen, read, settings.penalty), settings.penalty)
    agreed, after = judged(adjusted, proposal.scores, tokens, proposed, length, keys, drawing, settings)
    kept = jnp.minimum(agreed, length)

    index = jnp.arange(most + 1)
    new = jnp.where(index < kept[:, None], tokens, after[:, None])
    ends = are_ends(new, settings.eos) & (index <= kept[:, None])
    gained = jnp.where(ends.any(-1), ends.argmax(-1), kept) + 1
    count = jnp.where(live, jnp.minimum(state.written + gained, limit), state.written)
    valid = (index < gained[:, None]) & live[:, None]
    unread = jnp.where(proposed > 0, jnp.maximum(kept + 1 - proposed, 0), state.behind + 1)
    return Drafting(
        model=cache,
        draft=proposal.cache,
        padding=state.padding,
        begins=state.begins,
        text=put(state.text, jnp.where(live[:, None], new, read), state.written + live),
        written=count,
        behind=jnp.where(live, unread, 0),
        done=state.done | ends.any(-1) | (count >= limit),
        seen=state.seen.at[jnp.arange(batch)[:, None], new].max(valid),
        log_probs=log_probs.noted(state.log_probs, scores, new, state.written),
        tally=_counted(state.tally, length, proposed, agreed, live),
    )


def _propose(draft, state, proposed, keys, settings, config) -> _Proposal:
    """Reads what the draft has not read, and proposes so many tokens."""
    (batch, places), vocab = keys.shape, config.vocab_size
    rows = jnp.arange(batch)

    def step(carry):
        i, proposal, seen = carry
        # Who is behind less than others reads its own over and over until they are as far.
        ahead = jnp.maximum(i, -state.behind)
        token = take(proposal.text, state.written + ahead, 1)
        scores, cache = fed(
            draft.params, draft.layers, proposal.cache, token, state.padding, _place(state) + ahead,
            config=config,
        )  # fmt: skip
        scores = penalized(scores[:, 0], seen, settings.penalty)
        chosen = next_token(
            scores, lambda: keys[:, jnp.maximum(i, 0)], settings.temperature, settings.filters
        )
        # While it catches up, the next token is there.
        following = take(proposal.text, state.written + ahead + 1, 1)[:, 0]
        chosen = jnp.where(i < 0, following, chosen)
        text = put(proposal.text, chosen[:, None], state.written + ahead + 1)
        kept = put(proposal.scores, scores[:, None], jnp.maximum(i, 0))
        return i + 1, _Proposal(text, kept, cache), seen.at[rows, chosen].max(i >= 0)

    start = _Proposal(state.text, jnp.zeros((batch, places, vocab)), state.draft)
    begin = jnp.where(proposed > 0, -state.behind.max(), 0)
    return jax.lax.while_loop(lambda carry: carry[0] < proposed, step, (begin, start, state.seen))[1]


def _place(state: Drafting) -> Int[Array, " batch"]:
    """Where in the caches the last token of each sequence stands."""
    return state.begins + state.written - 1


def _seen_along(
    seen: Bool[Array, "batch vocab"], window: Int[Array, "batch size"], penalty: Array
) -> Bool[Array, "batch size vocab"]:
    """What was seen before the token behind each place of the window, all of which begins with a seen one."""
    batch, size = window.shape

    def along():
        fresh = jax.nn.one_hot(window, seen.shape[1], dtype=jnp.int8)
        return seen[:, None] | (jnp.cumsum(fresh, axis=1, dtype=jnp.int8) > 0)

    def nothing():
        return jnp.zeros((batch, size, seen.shape[1]), bool)

    return jax.lax.cond(jnp.any(penalty != 1), along, nothing)


_MEMORY = 0.95
"""What older rounds still count for after one more."""


def no_tally(batch: int) -> Tally:
    """The tally before the first round."""
    none, nothing = jnp.zeros(batch, jnp.int32), jnp.float32(0)
    return Tally(jnp.int32(0), none, none, none, nothing, nothing)


def _counted(
    tally: Tally, length: jax.Array, proposed: jax.Array, agreed: jax.Array, live: jax.Array
) -> Tally:
    """The tally after a round in which the model agreed with so many tokens of each sequence."""
    memory = jnp.where(proposed > 0, _MEMORY, 1.0)
    return Tally(
        tally.rounds + 1,
        tally.passes + live,
        tally.drafted + length * live,
        tally.accepted + jnp.minimum(agreed, length) * live,
        tally.hits * memory + (agreed * live).sum(),
        tally.misses * memory + (live & (agreed < proposed)).sum(),
    )
