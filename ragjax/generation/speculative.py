"""Speculative decoding on the device: a small model drafts, the model itself reads the draft at once.

The draft is kept as far as the model agrees, and the model's own choice follows it: greedy, the tokens are
the model's own; drawn, they come from its distribution, by the rejection rule of Leviathan et al.,
https://arxiv.org/abs/2211.17192, and Chen et al., https://arxiv.org/abs/2302.01318. Sequences of a batch
keep different parts of their drafts, so that each has its own place in the caches; what was not kept is
overwritten by what comes next.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.generation import log_probs
from ragjax.generation.decoding import Settings, extend, fill, scored, tokens_of
from ragjax.generation.draft_length import best_length, likely
from ragjax.generation.filters import penalized
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.sampling import drawn, likeliest, next_token, sequence_keys, warped
from ragjax.models.buffers import put, take
from ragjax.models.decoder import KeyValues, Params
from ragjax.models.decoder_config import DecoderConfig


class Network(NamedTuple):
    """A model as the loop takes it."""

    params: Params
    layers: tuple[Params, ...]
    """From `unstack`."""


class Configs(NamedTuple):
    """The architectures of both models."""

    model: DecoderConfig
    draft: DecoderConfig


class Pace(NamedTuple):
    """How far a draft goes; arrays, so that a change compiles nothing."""

    costs: Float[Array, " lengths"]
    """What a round costs with a draft of each length of the menu."""
    fixed: Int[Array, ""]
    """Index of the length every round takes; below 0: the one that promises most for its cost."""


class Tally(NamedTuple):
    """What became of the drafts."""

    rounds: Int[Array, ""]
    drafted: Int[Array, ""]
    """Tokens that were drafted, over all sequences that had not ended."""
    accepted: Int[Array, ""]
    """Those of them that were kept."""
    hits: Float[Array, ""]
    """Of late: accepted tokens, older ones counting less."""
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
    text: Int[Array, "batch room"]
    """The last token of the prompt, then the new ones, valid up to `written`."""
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
    scores: Float[Array, "batch most vocab"]
    """Logits of what each was drawn from."""
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
      model: parameters of the model, with stacked layers.
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
    keys = sequence_keys(settings.key, batch, jnp.int32(0))
    first = next_token(
        penalized(scores, seen, settings.penalty), keys, settings.temperature, settings.filters
    )
    text = jnp.zeros((batch, 1 + spare), jnp.int32)
    record = log_probs.empty(batch, spare, alternatives)
    return Drafting(
        model=cache,
        draft=own,
        padding=padding,
        text=text.at[:, 0].set(prompts[:, -1]).at[:, 1].set(first),
        written=jnp.ones(batch, jnp.int32),
        behind=jnp.zeros(batch, jnp.int32),
        done=jnp.isin(first, settings.eos),
        seen=seen.at[jnp.arange(batch), first].set(True),
        log_probs=log_probs.noted(record, scores[:, None], first[:, None], jnp.int32(0)),
        tally=Tally(jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.float32(0)),
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
        adapted = best_length(menu, pace.costs, likely(state.tally.hits, state.tally.misses))
        choice = jnp.where(pace.fixed < 0, adapted, pace.fixed)
        return _round(model, draft, state, choice, limit, settings, configs, menu)

    return jax.lax.while_loop(going, step, state)


def _round(model, draft, state, choice, limit, settings, configs, menu):
    """The state after one draft was made and judged."""
    most, batch = max(menu), len(state.written)
    length = jnp.asarray(menu, jnp.int32)[choice]
    # No two rounds of a sequence begin at the same count.
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(sequence_keys(settings.key, batch, state.written))
    proposal = _propose(draft, state, length, keys[:, 0], settings, configs.draft, most)
    window = take(proposal.text, state.written, most + 1)

    def verify(size: int):
        hidden, cache = extend(
            model.params, model.layers, state.model, window[:, : size + 1], state.padding, _place(state),
            config=configs.model,
        )  # fmt: skip
        scores = scored(model.params, hidden, configs.model)
        return jnp.pad(scores, ((0, 0), (0, most - size), (0, 0))), cache

    scores, cache = jax.lax.switch(choice, [partial(verify, size) for size in menu])
    adjusted = penalized(scores, _seen_along(state.seen, window, settings.penalty), settings.penalty)
    kept, after = _judge(adjusted, proposal.scores, window[:, 1:], length, keys[:, 1], keys[:, 2], settings)

    # What the window becomes: the drafted tokens that are kept, then the model's own.
    index = jnp.arange(most + 1)
    new = jnp.where(index < kept[:, None], jnp.roll(window, -1, axis=1), after[:, None])
    ends = jnp.isin(new, settings.eos) & (index <= kept[:, None])
    gained = jnp.where(ends.any(-1), ends.argmax(-1), kept) + 1
    count = jnp.where(state.done, state.written, jnp.minimum(state.written + gained, limit))
    valid = (index < gained[:, None]) & ~state.done[:, None]
    seen = state.seen.at[jnp.arange(batch)[:, None], new].max(valid)

    read = jnp.where(length > 0, 0, state.behind + 1)
    live = ~state.done
    return Drafting(
        model=cache,
        draft=proposal.cache,
        padding=state.padding,
        text=put(state.text, jnp.where(live[:, None], new, window), state.written + live),
        written=count,
        behind=jnp.where(live, jnp.where((length > 0) & (kept == length), 1, read), 0),
        done=state.done | ends.any(-1) | (count >= limit),
        seen=seen,
        log_probs=log_probs.noted(state.log_probs, scores, new, state.written),
        tally=_counted(state.tally, length, jnp.where(live, kept, 0), live),
    )


def _propose(draft, state, length, keys, settings, config, most) -> _Proposal:
    """Reads what the draft has not read, and drafts `length` tokens."""
    batch, vocab = len(state.written), config.vocab_size
    rows = jnp.arange(batch)

    def step(carry):
        i, proposal, seen = carry
        token = take(proposal.text, state.written + i, 1)
        hidden, cache = extend(
            draft.params, draft.layers, proposal.cache, token, state.padding, _place(state) + i, config=config
        )
        scores = penalized(scored(draft.params, hidden[:, 0], config), seen, settings.penalty)
        each = jax.vmap(jax.random.fold_in)(keys, jnp.full(batch, i))
        chosen = next_token(scores, each, settings.temperature, settings.filters)
        # While it catches up, the next token is there.
        following = take(proposal.text, state.written + i + 1, 1)[:, 0]
        chosen = jnp.where(i < 0, following, chosen)
        text = put(proposal.text, chosen[:, None], state.written + i + 1)
        kept = put(proposal.scores, scores[:, None], jnp.maximum(i, 0))
        return i + 1, _Proposal(text, kept, cache), seen.at[rows, chosen].set(True)

    start = _Proposal(state.text, jnp.zeros((batch, most, vocab)), state.draft)
    begin = jnp.where(length > 0, -state.behind.max(), 0)
    return jax.lax.while_loop(lambda carry: carry[0] < length, step, (begin, start, state.seen))[1]


def _judge(scores, drafts, tokens, length, keys, after_keys, settings):
    """How many of the drafted tokens are kept, and the model's own that follows them.

    Args:
      scores: logits of the model at the last token and at each drafted one, [batch, most + 1, vocab].
      drafts: logits of what each drafted token was chosen by, [batch, most, vocab].
      tokens: the drafted ones, [batch, most].
      length: how many there are.
      keys: random keys of the acceptance.
      after_keys: random keys of the token that follows.
      settings: how tokens are chosen.
    """
    batch, most = tokens.shape
    there = jnp.arange(most) < length
    drawing = jnp.broadcast_to(settings.temperature > 0, (batch,))

    def leading(agreed):
        return jnp.cumprod(agreed & there, axis=1, dtype=jnp.int32).sum(1)

    def greedy():
        own = likeliest(scores)
        kept = leading(own[:, :-1] == tokens)
        return kept, jnp.take_along_axis(own, kept[:, None], 1)[:, 0]

    def sampled():
        p = jax.nn.softmax(warped(scores, settings.temperature, settings.filters))
        q = jax.nn.softmax(warped(drafts, settings.temperature, settings.filters))
        of_model, of_draft = (
            jnp.take_along_axis(each[:, :most], tokens[..., None], 2)[..., 0] for each in (p, q)
        )
        chance = jax.vmap(lambda key: jax.random.uniform(key, (most,)))(keys)
        kept = leading(chance * of_draft < of_model)
        # Behind a draft that is kept whole nothing was refused: the model's own distribution is left.
        q = jnp.where((kept < length)[:, None], _at(q, jnp.minimum(kept, most - 1)), 0.0)
        p = _at(p, kept)
        left = jnp.maximum(p - q, 0.0)
        # Nothing is left where both are alike but for rounding.
        left = jnp.where(left.sum(-1, keepdims=True) > 0, left, p)
        return kept, drawn(jnp.log(left), after_keys)

    def both():
        return jax.tree.map(partial(jnp.where, drawing), sampled(), greedy())

    return jax.lax.cond(drawing.any(), both, greedy)


def _at(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Of each sequence the row at its index."""
    return jnp.take_along_axis(rows, index[:, None, None], 1)[:, 0]


def _place(state: Drafting) -> Int[Array, " batch"]:
    """Where in the caches the last token of each sequence stands."""
    prompt = state.model[0].length - state.text.shape[1] + 1
    return prompt + state.written - 1


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


def _counted(tally: Tally, length: jax.Array, kept: jax.Array, live: jax.Array) -> Tally:
    """The tally after a round that kept as many drafted tokens of each sequence."""
    refused = (live & (kept < length)).sum()
    memory = jnp.where(length > 0, _MEMORY, 1.0)
    return Tally(
        tally.rounds + 1,
        tally.drafted + length * live.sum(dtype=jnp.int32),
        tally.accepted + kept.sum(dtype=jnp.int32),
        tally.hits * memory + kept.sum(),
        tally.misses * memory + refused,
    )
