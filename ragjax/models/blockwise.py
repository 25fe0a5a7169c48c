"""A decoder run one block at a time, with a look at what each matrix of a block is given.

`embed`, `run_block` for each layer, and `Final` compute what `run_decoder` does; in between there are
only the residual stream and one block's parameters.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ragjax.models.attention import causal_mask
from ragjax.models.decoder import (
    Block,
    Embedding,
    LayerData,
    Params,
    Span,
    layer_data,
    rotary_angles,
)
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.linear import Linear
from ragjax.models.norm import Norm
from ragjax.models.run import apply


class BlockRun(NamedTuple):
    """What one block computed."""

    hidden: Float[Array, "batch seq width"]
    """The residual stream after the block."""
    inputs: dict[str, Float[Array, "batch seq in"]]
    """What each matrix was multiplied with, by the name of its kernel in the block: 'mlp/up/kernel'.

    Matrices that read the same share one array: `inputs[a] is inputs[b]`.
    """


class QueriesKeysValues(NamedTuple):
    """What one layer's attention compares and mixes, of all heads side by side, before rotary positions.

    Keys and values that several heads share are there once for each of them.
    """

    query: Float[Array, "batch seq heads_width"]
    key: Float[Array, "batch seq heads_width"]
    value: Float[Array, "batch seq heads_width"]


def embed(
    config: DecoderConfig, params: Params, tokens: Int[Array, "batch seq"], dtype: jnp.dtype = jnp.float32
) -> Float[Array, "batch seq width"]:
    """The residual stream before the first block.

    Args:
      config: the architecture.
      params: parameters of the whole model, of which the embedding is read.
      tokens: token ids.
      dtype: type the blocks compute in.
    """
    positions = jnp.arange(tokens.shape[1])[None]
    return apply(Embedding(config), params["embedding"], tokens, positions, dtype)


def one_layer(tree: Params, layer: int) -> Params:
    """The parameters of one block, from those of all, stacked."""
    return jax.tree.map(lambda leaf: leaf[layer], tree)


def layer_of(config: DecoderConfig, layer: int) -> LayerData:
    """The scale and window of one layer."""
    return LayerData(*(leaf[layer] for leaf in layer_data(config)))


def run_block(
    config: DecoderConfig, block: Params, layer: LayerData, hidden: Float[Array, "batch seq width"]
) -> BlockRun:
    """Runs one block over whole sequences.

    Args:
      config: the architecture.
      block: the block's parameters, without a layer axis.
      layer: its scale and window.
      hidden: the residual stream before it.
    """
    order = jnp.arange(hidden.shape[1])[None]
    span = Span(order, order, causal_mask(order, order), rotary_angles(config, order))
    inputs: dict[str, jax.Array] = {}
    # The arrays are held, so that no other takes their number.
    activated: dict[tuple[int, object], tuple[jax.Array, jax.Array]] = {}

    def look(call, arguments, options, context):
        module = context.module
        if isinstance(module, Linear) and context.method_name == "__call__":
            x, *_ = arguments
            # One array for those that read the same, so that it is worked on once.
            _, given = activated.setdefault((id(x), module.activation), (x, module.activation(x)))
            inputs["/".join((*module.path, "kernel"))] = given
        return call(*arguments, **options)

    with nn.intercept_methods(look):
        after, _ = apply(Block(config), block, hidden, layer, span)
    return BlockRun(after, inputs)


def queries_keys_values(
    config: DecoderConfig, block: Params, hidden: Float[Array, "batch seq width"]
) -> QueriesKeysValues:
    """The queries, keys and values of one block.

    Args:
      config: the architecture.
      block: the block's parameters, without a layer axis.
      hidden: the residual stream before it.
    """
    if config.residual != "post_norm":
        hidden = apply(Norm(config), block["attention_norm"], hidden)

    def vectors(name: str, count: int) -> jax.Array:
        made = Linear(count * config.head_width, 0.0, config.attention_bias)
        by_head = apply(made, block["attention"][name], hidden).reshape(*hidden.shape[:-1], count, -1)
        return jnp.repeat(by_head, config.heads // count, axis=2).reshape(*hidden.shape[:-1], -1)

    shared = config.key_value_heads
    return QueriesKeysValues(vectors("query", config.heads), vectors("key", shared), vectors("value", shared))


@partial(jax.jit, static_argnames="config")
def first_hidden(
    params: Params, tokens: Int[Array, "batch seq"], *, config: DecoderConfig
) -> Float[Array, "batch seq width"]:
    """`embed`, compiled.

    Args:
      params: parameters of which the embedding is read; the others need not be there.
      tokens: token ids.
      config: the architecture.
    """
    return embed(config, params, tokens)


@partial(jax.jit, static_argnames="config")
def next_hidden(
    block: Params, layer: LayerData, hidden: Float[Array, "batch seq width"], *, config: DecoderConfig
) -> Float[Array, "batch seq width"]:
    """The residual stream after a block, compiled once for all layers.

    Args:
      block: the block's parameters, without a layer axis.
      layer: its scale and window.
      hidden: the residual stream before it.
      config: the architecture.
    """
    return run_block(config, block, layer, hidden).hidden


@partial(jax.jit, static_argnames="config", donate_argnames="hidden")
def next_hidden_in_place(
    block: Params, layer: LayerData, hidden: Float[Array, "batch seq width"], *, config: DecoderConfig
) -> Float[Array, "batch seq width"]:
    """`next_hidden`, which overwrites the residual stream it is given.

    Args:
      block: the block's parameters, without a layer axis.
      layer: its scale and window.
      hidden: the residual stream before it, which is used up.
      config: the architecture.
    """
    return run_block(config, block, layer, hidden).hidden
