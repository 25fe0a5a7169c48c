"""Autoregressive decoding on the device: one program reads the prompts, one writes the rest.

Prompts stand flush right in a buffer of fixed length, so that all sequences write their next token
at the same place. A token's position is its place less the padding before its prompt.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ragjax.generation import log_probs
from ragjax.generation.filters import Filters, penalized
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.sampling import next_token, sequence_keys
from ragjax.kernels.chain import chained
from ragjax.models.attention import causal_mask
from ragjax.models.buffers import put
from ragjax.models.decoder import (
    Block,
    Embedding,
    Final,
    KeyValues,
    LayerData,
    Params,
    Span,
    layer_data,
    logits,
    rotary_angles,
)
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.key_values import alone, batched, empty_buffer
from ragjax.models.panels import are_in_panels
from ragjax.models.run import apply
from ragjax.models.stand_ins import is_stand_in
from ragjax.parallel.pin import pin_heads


class Settings(NamedTuple):
    """How tokens are chosen; arrays, so that a change compiles nothing."""

    temperature: Float[Array, "*batch"]
    """0 takes the likeliest token; one value, or one for each sequence."""
    key: Key[Array, "*batch"]
    """Random key of the whole generation, or one of each sequence."""
    eos: Int[Array, " ends"]
    """Token ids that end a sequence; -1 matches none."""
    filters: Filters | None = None
    """Which tokens may be drawn; none: all."""
    penalty: Float[Array, "*batch"] | None = None
    """Of repetition; none: 1, and what was there before is not remembered."""


class State(NamedTuple):
    """A generation under way."""

    cache: tuple[KeyValues, ...]
    """Of each layer: the prompts, then the new tokens except the last."""
    padding: Int[Array, " batch"]
    """Places before each prompt."""
    step: Int[Array, ""]
    """New tokens so far."""
    tokens: Int[Array, "batch room"]
    """New tokens, valid up to `step`."""
    done: Bool[Array, " batch"]
    """Whether the sequence has ended."""
    seen: Bool[Array, "batch vocab"] | None = None
    """Tokens of the prompt and new ones, where repetition has a penalty."""
    log_probs: LogProbs | None = None
    """Of the new tokens, where asked for."""


@partial(jax.jit, static_argnames=("config", "room", "cache_dtype", "alternatives"))
def prefill(
    params: Params,
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    settings: Settings,
    *,
    config: DecoderConfig,
    room: int,
    cache_dtype: Any = None,
    alternatives: int | None = None,
) -> State:
    """Reads the prompts and chooses the first new token.

    Args:
      params: with stacked layers, or a tuple of them.
      prompts: flush right; what stands in the padding does not matter.
      padding: places before each prompt, less than the length.
      settings: how tokens are chosen.
      config: the architecture.
      room: new tokens there is room for.
      cache_dtype: type in which keys and values are kept; none: that of the table of tokens.
      alternatives: tell log-probs of the new tokens, and of so many likeliest; none: tell none.
    """
    scores, cache = fill(params, prompts, padding, config=config, room=room, cache_dtype=cache_dtype)
    batch = prompts.shape[0]
    start = State(
        cache, padding, jnp.int32(0), jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, bool),
        None if settings.penalty is None else tokens_of(prompts, padding, config.vocab_size),
        log_probs.empty(batch, room, alternatives),
    )  # fmt: skip
    return add_token(start, scores, settings)


def fill(
    params: Params,
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    *,
    config: DecoderConfig,
    room: int,
    cache_dtype: Any = None,
) -> tuple[Float[Array, "batch vocab"], tuple[KeyValues, ...]]:
    """Scores of the token after each prompt, and each layer's cache, with room for new tokens."""
    scores, stacked = read(params, prompts, padding, config=config, dtype=cache_dtype)
    grow = ((0, 0), (0, 0), (0, room), (0, 0))

    def grown(layer):
        return jax.tree.map(lambda x: pin_heads(jnp.pad(x[layer], grow)), stacked)

    return scores, tuple(grown(layer) for layer in range(config.layers))


def tokens_of(
    prompts: Int[Array, "batch length"], padding: Int[Array, " batch"], vocab_size: int
) -> Bool[Array, "batch vocab"]:
    """Which tokens each prompt holds."""
    batch, length = prompts.shape
    real = jnp.arange(length) >= padding[:, None]
    return jnp.zeros((batch, vocab_size), bool).at[jnp.arange(batch)[:, None], prompts].max(real)


def read(
    params: Params,
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    *,
    config: DecoderConfig,
    dtype: Any = None,
) -> tuple[Float[Array, "batch vocab"], KeyValues]:
    """Scores of the token after each prompt, and the keys and values of all layers, stacked.

    Args:
      params: with stacked layers, or a tuple of them.
      prompts: flush right; what stands in the padding does not matter.
      padding: places before each prompt.
      config: the architecture.
      dtype: type in which keys and values are kept; none: that of the table of tokens.
    """
    batch, length = prompts.shape
    places = jnp.arange(length)[None]
    positions = jnp.maximum(places - padding[:, None], 0)
    mask = causal_mask(places, places) & (places >= padding[:, None])[:, None, :]
    span = Span(positions, positions, mask, rotary_angles(config, positions), jnp.int32(0))
    shape = (batch, config.key_value_heads, length, config.head_width)
    empty = empty_buffer(shape, dtype or _computed_in(params))

    def layer(x, scanned):
        weights, data = scanned
        return apply(Block(config), weights, x, data, span, KeyValues(empty, empty))

    x, data = _embed(params, prompts, positions, config), layer_data(config)
    if isinstance(params["layers"], tuple):
        caches = []
        for weights, one in zip(params["layers"], _each(data, config.layers), strict=True):
            x, cache = layer(x, (weights, one))
            caches.append(cache)
        cache = jax.tree.map(lambda *each: jnp.stack(each), *caches)
    else:
        # Scanned, unlike a decoding step: it runs once, and compiles as fast for any depth.
        x, cache = jax.lax.scan(layer, x, (params["layers"], data))
    return scored(params, x[:, -1], config), cache


def _each(data: LayerData, layers: int) -> list[LayerData]:
    return [LayerData(data.scale[i], data.window[i]) for i in range(layers)]


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def decode(
    params: Params,
    layers: tuple[Params, ...],
    state: State,
    until: Int[Array, ""],
    settings: Settings,
    *,
    config: DecoderConfig,
) -> State:
    """Goes on until there are `until` new tokens or every sequence has ended.

    Args:
      params: for the embedding, the last norm and the head.
      layers: from `laid_out`.
      state: consumed.
      until: at most the state's room.
      settings: how tokens are chosen.
      config: the architecture.
    """

    def going(state):
        return (state.step < until) & ~state.done.all()

    def step(state):
        scores, cache = advance(params, layers, state, config=config)
        return add_token(state._replace(cache=cache), scores, settings)

    state = jax.lax.while_loop(going, step, state._replace(cache=alone(state.cache)))
    return state._replace(cache=batched(state.cache))


def advance(
    params: Params, layers: tuple[Params, ...], state: State, *, config: DecoderConfig
) -> tuple[Float[Array, "batch vocab"], tuple[KeyValues, ...]]:
    """Feeds the last new token: scores of the next one, and the caches that now hold its keys."""
    length = state.cache[0].length
    place = length - state.tokens.shape[1] + state.step - 1
    last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
    scores, cache = fed(params, layers, state.cache, last, state.padding, place, config=config)
    return scores[:, 0], cache


def fed(
    params: Params,
    layers: tuple[Params, ...],
    cache: tuple[KeyValues, ...],
    tokens: Int[Array, "batch new"],
    padding: Int[Array, " batch"],
    place: Int[Array, "*batch"],
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "batch new vocab"], tuple[KeyValues, ...]]:
    """Feeds tokens to all layers: scores of what follows each, and the caches that now hold their keys.

    In panels, kernels that follow one another are one call.

    Args:
      params: for the embedding, the last norm and the head.
      layers: from `laid_out`.
      cache: as `extend` has it, like all that follows.
      tokens: as many for each sequence.
      padding: places before each prompt.
      place: where in the cache the first of the tokens stands.
      config: the architecture.
    """

    def feed(params, *given):
        hidden, cache = extend(params, *given, config=config)
        return scored(params, hidden, config), cache

    given = params, layers, cache, tokens, padding, place
    return chained(feed, *given) if are_in_panels(layers) else feed(*given)


def extend(
    params: Params,
    layers: tuple[Params, ...],
    cache: tuple[KeyValues, ...],
    tokens: Int[Array, "batch new"],
    padding: Int[Array, " batch"],
    place: Int[Array, "*batch"],
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "batch new width"], tuple[KeyValues, ...]]:
    """Feeds tokens to all layers: what the last one says of each, and the caches that now hold their keys.

    What the cache holds at their places and after is overwritten and not seen, so that a sequence goes
    back by being fed at an earlier place.

    Args:
      params: for the embedding.
      layers: from `laid_out`.
      cache: of each layer; has room for the tokens.
      tokens: as many for each sequence.
      padding: places before each prompt.
      place: where in the cache the first of the tokens stands: one for all sequences, or one for each.
      config: the architecture.

    Returns:
      Hidden states, of which `scored` makes scores, and the caches.
    """
    places = jnp.arange(cache[0].length)[None]
    own = jnp.broadcast_to(place, padding.shape)[:, None] + jnp.arange(tokens.shape[1])
    # A sequence that has ended may be fed beyond the model's positions; what it says is not read.
    query = jnp.minimum(own - padding[:, None], config.positions - 1)
    positions = jnp.maximum(places - padding[:, None], 0)
    mask = (places[:, None] <= own[..., None]) & (places >= padding[:, None])[:, None, :]
    span = Span(query, positions, mask, rotary_angles(config, query), place)
    x = _embed(params, tokens, query, config)
    caches = []
    for weights, held, one in zip(layers, cache, _each(layer_data(config), config.layers), strict=True):
        x, held = apply(Block(config), weights, x, one, span, held)
        caches.append(held)
    return x, tuple(caches)


def scored(params: Params, hidden: jax.Array, config: DecoderConfig) -> jax.Array:
    """Scores of the next token from what the last layer says."""
    return logits(params, apply(Final(config, in_step=True), params, hidden), config)


def add_token(state: State, scores: jax.Array, settings: Settings) -> State:
    """The state with the token that follows; sequences that have ended repeat their last one."""
    batch = scores.shape[0]
    keys = partial(sequence_keys, settings.key, batch, state.step)
    seen, adjusted = state.seen, scores
    if seen is not None and settings.penalty is not None:
        adjusted = penalized(scores, seen, settings.penalty)
    token = next_token(adjusted, keys, settings.temperature, settings.filters)
    last = jax.lax.dynamic_slice_in_dim(state.tokens, jnp.maximum(state.step - 1, 0), 1, axis=1)
    token = jnp.where(state.done, last[:, 0], token)
    return state._replace(
        step=state.step + 1,
        tokens=put(state.tokens, token[:, None], state.step),
        done=state.done | jnp.isin(token, settings.eos),
        seen=None if seen is None else seen.at[jnp.arange(batch), token].set(True),
        log_probs=log_probs.noted(state.log_probs, scores[:, None], token[:, None], state.step),
    )


def _embed(params: Params, tokens: jax.Array, positions: jax.Array, config: DecoderConfig) -> jax.Array:
    return apply(Embedding(config), params["embedding"], tokens, positions, _computed_in(params))


def _computed_in(params: Params) -> jnp.dtype:
    """The type of all that is computed, caches included: that of the table of tokens, or float32."""
    table = params["embedding"]["tokens"]
    return jnp.dtype(jnp.float32) if is_stand_in(table) else table.dtype
