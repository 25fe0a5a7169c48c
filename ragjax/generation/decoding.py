"""Autoregressive decoding on the device: one program reads the prompts, one writes the rest.

Prompts stand flush right in a buffer of fixed length, so that all sequences write their next token
at the same place. A token's position is its place less the padding before its prompt.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ragjax.generation.sampling import next_token, sequence_keys
from ragjax.models.attention import causal_mask
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
from ragjax.models.run import apply


class Settings(NamedTuple):
    """How tokens are chosen; arrays, so that a change compiles nothing."""

    temperature: Float[Array, ""]
    """0 takes the likeliest token."""
    key: Key[Array, "*batch"]
    """Random key of the whole generation, or one of each sequence."""
    eos: Int[Array, " ends"]
    """Token ids that end a sequence; -1 matches none."""


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


@partial(jax.jit, static_argnames="config")
def unstack(params: Params, *, config: DecoderConfig) -> tuple[Params, ...]:
    """The parameters of each layer as arrays of their own.

    A slice of the stacked ones would be copied at every step of the decoding loop.
    """
    return tuple(jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(config.layers))


@partial(jax.jit, static_argnames=("config", "room"))
def prefill(
    params: Params,
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    settings: Settings,
    *,
    config: DecoderConfig,
    room: int,
) -> State:
    """Reads the prompts and chooses the first new token.

    Args:
      params: with stacked layers.
      prompts: flush right; what stands in the padding does not matter.
      padding: places before each prompt, less than the length.
      settings: how tokens are chosen.
      config: the architecture.
      room: new tokens there is room for.
    """
    scores, stacked = read(params, prompts, padding, config=config)
    grow = ((0, 0), (0, room), (0, 0), (0, 0))
    cache = tuple(jax.tree.map(lambda x, i=i: jnp.pad(x[i], grow), stacked) for i in range(config.layers))
    batch = prompts.shape[0]
    start = State(cache, padding, jnp.int32(0), jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, bool))
    return _add(start, scores, settings)


def read(
    params: Params,
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "batch vocab"], KeyValues]:
    """Scores of the token after each prompt, and the keys and values of all layers, stacked."""
    batch, length = prompts.shape
    places = jnp.arange(length)[None]
    positions = jnp.maximum(places - padding[:, None], 0)
    mask = causal_mask(places, places) & (places >= padding[:, None])[:, None, :]
    span = Span(positions, positions, mask, rotary_angles(config, positions), jnp.int32(0))
    empty = jnp.zeros((batch, length, config.key_value_heads, config.head_width), _computed_in(params))

    def layer(x, scanned):
        weights, data = scanned
        return apply(Block(config), weights, x, data, span, KeyValues(empty, empty))

    x = _embed(params, prompts, positions, config)
    # Scanned, unlike a decoding step: it runs once, and compiles as fast for any depth.
    x, cache = jax.lax.scan(layer, x, (params["layers"], layer_data(config)))
    return _scores(params, x[:, -1], config), cache


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
      layers: from `unstack`.
      state: consumed.
      until: at most the state's room.
      settings: how tokens are chosen.
      config: the architecture.
    """

    def going(state):
        return (state.step < until) & ~state.done.all()

    def step(state):
        scores, cache = advance(params, layers, state, config=config)
        return _add(state._replace(cache=cache), scores, settings)

    return jax.lax.while_loop(going, step, state)


def advance(
    params: Params, layers: tuple[Params, ...], state: State, *, config: DecoderConfig
) -> tuple[Float[Array, "batch vocab"], tuple[KeyValues, ...]]:
    """Feeds the last new token: scores of the next one, and the caches that now hold its keys."""
    length = state.cache[0].key.shape[1]
    place = length - state.tokens.shape[1] + state.step - 1
    places = jnp.arange(length)[None]
    positions = jnp.maximum(places - state.padding[:, None], 0)
    query = place - state.padding[:, None]
    mask = (places <= place) & (places >= state.padding[:, None])
    span = Span(query, positions, mask[:, None, :], rotary_angles(config, query), place)

    last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
    x = _embed(params, last, query, config)
    data, caches = layer_data(config), []
    for i, (weights, cache) in enumerate(zip(layers, state.cache, strict=True)):
        one = LayerData(data.scale[i], data.window[i])
        x, cache = apply(Block(config), weights, x, one, span, cache)
        caches.append(cache)
    return _scores(params, x[:, 0], config), tuple(caches)


def _add(state: State, scores: jax.Array, settings: Settings) -> State:
    """The state with the token that follows; sequences that have ended repeat their last one."""
    keys = sequence_keys(settings.key, scores.shape[0], state.step)
    token = next_token(scores, keys, settings.temperature)
    last = jax.lax.dynamic_slice_in_dim(state.tokens, jnp.maximum(state.step - 1, 0), 1, axis=1)
    token = jnp.where(state.done, last[:, 0], token)
    return state._replace(
        step=state.step + 1,
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1),
        done=state.done | jnp.isin(token, settings.eos),
    )


def _embed(params: Params, tokens: jax.Array, positions: jax.Array, config: DecoderConfig) -> jax.Array:
    return apply(Embedding(config), params["embedding"], tokens, positions, _computed_in(params))


def _computed_in(params: Params) -> jnp.dtype:
    """The type of all that is computed, caches included: that of the table of tokens."""
    return params["embedding"]["tokens"].dtype


def _scores(params: Params, x: jax.Array, config: DecoderConfig) -> jax.Array:
    return logits(params, apply(Final(config), params, x), config)
