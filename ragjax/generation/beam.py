"""Beam search: the likeliest text among several that are followed at once.

The rules are those of transformers: which beams go on, when a text counts as ended, how its length
weighs, and when the search ends.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.generation.decoding import fed, fill, tokens_of
from ragjax.generation.filters import penalized
from ragjax.models.decoder import KeyValues, Params
from ragjax.models.decoder_config import DecoderConfig

_NEVER = -1e9
"""Score of what must not be chosen."""


class Rules(NamedTuple):
    """How beams are ranked and ended; arrays, so that a change compiles nothing."""

    eos: Int[Array, " ends"]
    """Token ids that end a text; -1 matches none."""
    length_penalty: Float[Array, ""]
    """Power of a text's length that divides its log-probability."""
    enough: Bool[Array, ""]
    """End as soon as as many texts have ended as there are beams."""
    patient: Bool[Array, ""]
    """Until then, compare running beams with ended ones at the length that favours them most."""
    penalty: Float[Array, ""]
    """Of repetition."""


class Texts(NamedTuple):
    """Several continuations of each prompt."""

    scores: Float[Array, "batch beams"]
    """Log-probability, over a power of the length where the text has ended."""
    tokens: Int[Array, "batch beams room"]
    lengths: Int[Array, "batch beams"]
    chosen: Float[Array, "batch beams room"]
    """Log-probability of each token under the model."""


class _Search(NamedTuple):
    cache: tuple[KeyValues, ...]
    seen: Bool[Array, "rows vocab"]
    step: Int[Array, ""]
    running: Texts
    ended: Texts
    full: Bool[Array, "batch beams"]
    """Whether a text stands in this place of `ended`."""
    hopeful: Bool[Array, "batch 1"]
    """Whether a running beam may still become better than one that has ended."""
    going: Bool[Array, ""]


@partial(jax.jit, static_argnames=("config", "room", "beams", "spare", "cache_dtype"))
def beam_search(
    params: Params,
    layers: tuple[Params, ...],
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    until: Int[Array, ""],
    rules: Rules,
    *,
    config: DecoderConfig,
    room: int,
    beams: int,
    spare: int,
    cache_dtype: Any = jnp.float32,
) -> Texts:
    """The best continuations of each prompt, best first.

    Args:
      params: with stacked layers, or a tuple of them.
      layers: from `laid_out`.
      prompts: flush right; what stands in the padding does not matter.
      padding: places before each prompt.
      until: tokens a continuation may have, at most `room`.
      rules: how beams are ranked and ended.
      config: the architecture.
      room: new tokens there is room for.
      beams: continuations that are followed at once.
      spare: candidates considered for each beam, at least one more than there are tokens that end a text.
      cache_dtype: type in which keys and values are kept.
    """
    batch, vocab = prompts.shape[0], config.vocab_size
    scores, cache = fill(params, prompts, padding, config=config, room=room, cache_dtype=cache_dtype)
    cache, scores, seen, padding = (
        jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), each)
        for each in (cache, scores, tokens_of(prompts, padding, vocab), padding)
    )
    none = Texts(
        jnp.full((batch, beams), _NEVER), jnp.zeros((batch, beams, room), jnp.int32),
        jnp.zeros((batch, beams), jnp.int32), jnp.zeros((batch, beams, room)),
    )  # fmt: skip
    # All beams of a prompt are alike at first: only one may be continued.
    first = none._replace(scores=none.scores.at[:, 0].set(0.0))
    start = _Search(
        cache, seen, jnp.int32(0), first, none, jnp.zeros((batch, beams), bool), jnp.ones((batch, 1), bool),
        jnp.bool(True),
    )  # fmt: skip

    def step(search: _Search) -> _Search:
        place = prompts.shape[1] + search.step - 1
        last = jax.lax.dynamic_slice_in_dim(search.running.tokens, search.step - 1, 1, axis=2)
        scores, cache = fed(params, layers, search.cache, last.reshape(-1, 1), padding, place, config=config)
        return _choose(search._replace(cache=cache), scores[:, 0], until, rules, spare)

    end = jax.lax.while_loop(lambda search: search.going, step, _choose(start, scores, until, rules, spare))
    return end.ended


def _choose(search: _Search, scores: jax.Array, until: jax.Array, rules: Rules, spare: int) -> _Search:
    """The search with one more token in each beam."""
    batch, beams = search.full.shape
    vocab = scores.shape[-1]
    own = jax.nn.log_softmax(scores, axis=-1)
    total = penalized(own, search.seen, rules.penalty).reshape(batch, beams, vocab)
    total = (total + search.running.scores[..., None]).reshape(batch, -1)
    best, index = jax.lax.top_k(total, spare * beams)
    parent, token = index // vocab, (index % vocab).astype(jnp.int32)
    step = search.step

    chosen = jnp.take_along_axis(own.reshape(batch, -1), index, 1)
    candidates = _pick(search.running, parent)
    candidates = Texts(
        best,
        candidates.tokens.at[:, :, step].set(token),
        jnp.full_like(parent, step + 1),
        candidates.chosen.at[:, :, step].set(chosen),
    )
    ends = jnp.isin(token, rules.eos) | (step + 1 >= until)

    order = jax.lax.top_k(best + _NEVER * ends, beams)[1]
    running = _pick(candidates._replace(scores=best + _NEVER * ends), order)
    rows = (jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(parent, order, 1)).reshape(-1)
    seen = search.seen[rows].at[jnp.arange(batch * beams), running.tokens[:, :, step].reshape(-1)].set(True)

    # Only what is among the best `beams` candidates ends a text: the rest are there to go on with.
    ends_well = ends & (jnp.arange(ends.shape[1]) < beams)
    closed = search.full.all(-1, keepdims=True) & rules.enough
    worth = best / jnp.float32(step + 1) ** rules.length_penalty
    worth += _NEVER * closed + _NEVER * ~search.hopeful + _NEVER * ~ends_well
    both = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b], 1), search.ended, candidates._replace(scores=worth)
    )
    kept = jax.lax.top_k(both.scores, beams)[1]
    ended = _pick(both, kept)
    full = jnp.take_along_axis(jnp.concatenate([search.full, ends_well], 1), kept, 1)

    longest = jnp.where(rules.patient & (rules.length_penalty > 0), until, step + 1)
    possible = running.scores[:, :1] / longest.astype(jnp.float32) ** rules.length_penalty
    worst = jnp.where(full, ended.scores.min(-1, keepdims=True), _NEVER)
    hopeful = search.hopeful & (possible > worst).any(-1, keepdims=True)
    going = hopeful.any() & ~(full.all() & rules.enough) & ~ends.all()
    cache = jax.tree.map(lambda x: x[rows], search.cache)
    return _Search(cache, seen, step + 1, running, ended, full, hopeful, going)


def _pick(texts: Texts, index: jax.Array) -> Texts:
    """The texts at `index`, for each prompt its own."""
    return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, index), texts)
