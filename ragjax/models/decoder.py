"""GPT-2 and its kin: one block, stacked under a scan, described by `DecoderConfig`.

Parameters are a plain dict. Those of the blocks are stacked on a leading layer axis:

    embedding/tokens      [padded_vocab, width]     final_norm/scale, bias  [width]
    embedding/positions   [positions, width]        head (untied only)      [padded_vocab, width]
    layers/attention_norm, layers/mlp_norm          scale, bias             [layers, width]
    layers/attention/{query,key,value,out}          kernel [layers, in, out], bias [layers, out]
    layers/mlp/{up,down} and gate (gated only)      kernel [layers, in, out], bias [layers, out]

Where `embedding_width` is set, tables of tokens have that width, and `embedding/projection/kernel` and
`output_projection/kernel` lead to `width` and back. What a config does without is not there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from ragjax.models.activations import ACTIVATIONS
from ragjax.models.attention import attend, causal_mask, within
from ragjax.models.cached_attention import hold_and_attend
from ragjax.models.causal_attention import causal_attend
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.fused_attention import fused_attend, fused_serves
from ragjax.models.key_values import KeyValues
from ragjax.models.linear import ACTIVE, PRODUCT, Linear, given
from ragjax.models.norm import Norm
from ragjax.models.panels import Active
from ragjax.models.rotary import Angles, angles, rotate
from ragjax.models.rows import rows_of
from ragjax.models.stand_ins import Table
from ragjax.parallel.pin import pin, pin_batch

Params = dict
"""A tree of arrays as described above, or of what stands for them: `ragjax.models.stand_ins`."""


class DecoderOutput(NamedTuple):
    """What the blocks computed; `logits` turns `hidden` into scores over the vocabulary."""

    hidden: Float[Array, "batch seq token_width"]
    """Output of the last norm."""
    layers: Float[Array, "layers batch seq width"] | None
    """Output of each block, where asked for."""
    embedded: Float[Array, "batch seq width"] | None = None
    """What the first block is given, where asked for."""


class Span(NamedTuple):
    """Where the tokens at hand stand, and which keys each may see."""

    queries: Int[Array, "#batch seq"]
    """Positions of the tokens."""
    keys: Int[Array, "#batch keys"]
    """Positions of the keys."""
    mask: Bool[Array, "#batch seq keys"] | None
    """True where a token may see a key, windows apart; none: all up to its own, in one fused kernel."""
    angles: Angles | None = None
    """Rotary angles of the tokens, where the model turns queries and keys."""
    write_at: Int[Array, ""] | Int[Array, " batch"] | None = None
    """Index in the key-value buffer at which the tokens' own keys are written: one for all, or one for each
    sequence."""


class LayerData(NamedTuple):
    """What differs between layers besides parameters."""

    scale: Float[Array, " layers"]
    """Multiplies the attention scores."""
    window: Int[Array, " layers"]
    """Attention window; 0 is dense."""


def layer_data(config: DecoderConfig) -> LayerData:
    """The scales and windows of all layers of `config`, stacked."""
    return LayerData(
        jnp.asarray(config.attention_scales, jnp.float32), jnp.asarray(config.layer_windows, jnp.int32)
    )


def rotary_angles(config: DecoderConfig, positions: Int[Array, "#batch seq"]) -> Angles | None:
    """The angles of tokens at `positions`; none where the model has no rotary positions."""
    return None if config.rotary is None else angles(positions, config.rotary, config.head_width)


JOINT = ("query", "key", "value")
"""What attention makes of its input; among its parameters "joint" may stand for them, one after the other."""


class Attention(nn.Module):
    """Causal multi-head self-attention, with or without a buffer of earlier keys and values."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x, layer: LayerData, span: Span, cache: KeyValues | None, deterministic: bool, added=None
    ):
        """Returns what attention makes of `x`, or `added` and that, and the cache with the keys of `x`."""
        config = self.config
        std = config.initializer_range

        def heads(name, count):
            made = Linear(count * config.head_width, std, config.attention_bias, name=name)(x)
            return made.reshape(*x.shape[:-1], count, config.head_width)

        shared = config.key_value_heads
        counts = config.heads, shared, shared
        if self.has_variable("params", "joint"):
            together = heads("joint", sum(counts))
            query, key, value = jnp.split(together, (config.heads, config.heads + shared), axis=-2)
        else:
            query, key, value = (heads(name, count) for name, count in zip(JOINT, counts, strict=True))
        if span.angles is not None:
            query, key = rotate(query, span.angles), rotate(key, span.angles)
        mask = span.mask
        if mask is not None and any(config.layer_windows):
            mask = within(mask, span.queries, span.keys, layer.window)
        rate = 0.0 if deterministic else config.attention_dropout
        if mask is None:
            out = fused_attend(query, key, value, scale=layer.scale)
        elif cache is not None:
            assert span.write_at is not None
            out, cache = hold_and_attend(
                query, key, value, cache, span.write_at, mask=mask, scale=layer.scale
            )
        elif not rate:
            key, value = (jnp.repeat(each, config.heads // shared, axis=2) for each in (key, value))
            out = causal_attend(query, key, value, mask=mask, scale=layer.scale)
        else:
            out = attend(
                query, key, value, mask=mask, scale=layer.scale,
                dropout_rate=rate, dropout_key=self.make_rng("dropout"),
            )  # fmt: skip
        # GPT-2 scales what is added to the residual stream by the number of additions.
        out_std = std / (2 * config.layers) ** 0.5
        flat = out.reshape(*x.shape[:-1], config.heads * config.head_width)
        return Linear(config.width, out_std, config.attention_out_bias, name="out")(flat, added), cache


class MLP(nn.Module):
    """Two projections with a nonlinearity between them, which a third may gate."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, added=None):
        """Returns what the MLP makes of `x`, or `added` and that."""
        config = self.config
        std = config.initializer_range
        activation = ACTIVATIONS[config.activation]
        if self.has_variable("params", ACTIVE):
            assert not config.gated
            active: Active = self.get_variable("params", ACTIVE)
            up, activation = active.multiply(x).astype(x.dtype), ACTIVATIONS["linear"]
        else:
            up = Linear(config.mlp_width, std, config.mlp_bias, name="up")(x)
        if config.gated:
            gate = Linear(config.mlp_width, std, config.mlp_bias, name="gate")(x)
            up, activation = activation(gate) * up, ACTIVATIONS["linear"]
        out_std = std / (2 * config.layers) ** 0.5
        return Linear(config.width, out_std, config.mlp_bias, activation, name="down")(up, added)


class Block(nn.Module):
    """Attention and MLP, added to the residual stream in the order `residual` says."""

    config: DecoderConfig
    deterministic: bool = True
    capture: bool = False

    @nn.compact
    def __call__(self, x, layer: LayerData, span: Span, cache: KeyValues | None = None):
        """Returns the block's output, and its new cache, or its output again where captured."""
        config = self.config
        drop = nn.Dropout(config.residual_dropout, deterministic=self.deterministic)
        attention, mlp = Attention(config, name="attention"), MLP(config, name="mlp")
        attention_norm, mlp_norm = (
            Norm(config, cache is not None, name=name) for name in ("attention_norm", "mlp_norm")
        )
        after = config.residual == "post_norm"
        assert cache is None or (self.deterministic and not self.capture and span.mask is not None)
        normed = x if after else attention_norm(x)
        if cache is not None:
            attended, cache = attention(normed, layer, span, cache, self.deterministic, x)
            return pin_batch(_step(config.residual, x, attended, attention_norm, mlp, mlp_norm)), cache
        out, cache = attention(normed, layer, span, cache, self.deterministic)
        if config.residual == "parallel":
            x = x + drop(out) + drop(mlp(mlp_norm(x)))
        elif after:
            x = attention_norm(x + drop(out))
            x = mlp_norm(x + drop(mlp(x)))
        else:
            x = x + drop(out)
            x = x + drop(mlp(mlp_norm(x)))
        x = pin_batch(x)
        return x, (x if self.capture else cache)


def _step(residual: str, x, attended, attention_norm: Norm, mlp: MLP, mlp_norm: Norm):
    """A block that has no dropout, from `x` with what attention made of it: products end in what they are
    added to."""
    if residual == "parallel":
        return mlp(mlp_norm(x), attended)
    if residual == "post_norm":
        attended = attention_norm(attended)
        return mlp_norm(mlp(attended, attended))
    return mlp(mlp_norm(attended), attended)


class Embedding(nn.Module):
    """Token embedding, plus that of the position where positions are learned."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch seq"], positions: Int[Array, "#batch seq"], dtype):
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        stand_in: Table | None = given(self, "tokens")
        if stand_in is None:
            table = self.param("tokens", init, (config.padded_vocab_size, config.token_width), jnp.float32)
            # Whole along the width: a lookup in a table split there copies the whole batch to every device.
            x = rows_of(pin(table, ("tensor",), ()), tokens).astype(dtype)
        else:
            x = stand_in.rows(tokens).astype(dtype)
        if config.embedding_width:
            x = Linear(config.width, config.initializer_range, False, name="projection")(x)
        if config.learned_positions:
            rows = config.position_offset + config.positions
            places = self.param("positions", init, (rows, config.width), jnp.float32)
            x = x + rows_of(pin(places, (), ()), config.position_offset + positions).astype(dtype)
        return pin_batch(x)


class Final(nn.Module):
    """What stands between the last block and the scores: the last norm and the output projection."""

    config: DecoderConfig
    in_step: bool = False
    """As `Norm` has it."""

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... token_width"]:
        return _final(self.config, x, in_step=self.in_step)


def _final(
    config: DecoderConfig, x: Float[Array, "... width"], *, in_step: bool = False
) -> Float[Array, "... token_width"]:
    if config.final_norm:
        x = Norm(config, in_step, name="final_norm")(x)
    if config.embedding_width:
        x = Linear(config.embedding_width, config.initializer_range, False, name="output_projection")(x)
    return x


_REMAT = {"dots": jax.checkpoint_policies.save_only_these_names(PRODUCT), "full": None}


class Decoder(nn.Module):
    """Embedding, blocks, last norm.

    Attributes:
      config: the architecture.
      dtype: type the blocks compute in; parameters are float32 masters.
      remat: what the backward pass computes again: "none", "dots" (all but matrix products), "full".
      deterministic: without dropout; otherwise `apply` needs `rngs={"dropout": key}`.
      capture: also return every block's output, and what the first is given.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    deterministic: bool = True
    capture: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        *,
        positions: Int[Array, "#batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
    ) -> DecoderOutput:
        """Runs the network.

        Args:
          tokens: token ids.
          positions: position of each token; none: 0, 1, 2, ...
          segments: number of the document each token belongs to; attention stays inside it.
        """
        config = self.config
        order = jnp.arange(tokens.shape[1])[None]
        positions = order if positions is None else positions
        mask = None if self._fused(segments) else causal_mask(order, order)
        if mask is not None and segments is not None:
            mask = mask & (segments[:, :, None] == segments[:, None, :])
        span = Span(order, order, mask, rotary_angles(config, positions))

        x = Embedding(config, name="embedding")(tokens, positions, self.dtype)
        x = nn.Dropout(config.embedding_dropout, deterministic=self.deterministic)(x)
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=_REMAT[self.remat], prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=config.layers,
        )
        embedded = x if self.capture else None
        x, captured = layers(config, self.deterministic, self.capture, name="layers")(
            x, layer_data(config), span
        )
        hidden = _final(config, x)
        if not config.tied and given(self, "head") is None:
            # Held here, read by `logits` and by the fused losses.
            init = nn.initializers.normal(config.initializer_range)
            self.param("head", init, (config.padded_vocab_size, config.token_width), jnp.float32)
        return DecoderOutput(hidden, captured, embedded)

    def _fused(self, segments: Int[Array, "batch seq"] | None) -> bool:
        """Whether every layer sees all that came before, and a kernel for that is at hand."""
        config = self.config
        dropout = config.attention_dropout and not self.deterministic
        limited = segments is not None or any(config.layer_windows)
        return not (dropout or limited) and fused_serves(self.dtype, config.head_width)


def output_table(params: Params) -> Float[Array, "padded_vocab token_width"]:
    """The output projection, as an array: the head's own, or the token embedding it is tied to."""
    table = _output_table(params)
    return table.whole() if isinstance(table, Table) else table


def _output_table(params: Params) -> Float[Array, "padded_vocab token_width"] | Table:
    return params["head"] if "head" in params else params["embedding"]["tokens"]


def logits(
    params: Params, hidden: Float[Array, "... token_width"], config: DecoderConfig
) -> Float[Array, "... vocab"]:
    """Float32 scores of the next token, without the rows that only pad the vocabulary."""
    table = _output_table(params)
    if isinstance(table, Table):
        scores = table.scores(hidden)
    else:
        scores = jnp.einsum(
            "...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
    return scores[..., : config.vocab_size]


def init_params(config: DecoderConfig, seed: int) -> Params:
    """Float32 parameters of a new model; the rows that pad the vocabulary are zero."""
    params = Decoder(config).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
    real = jnp.arange(config.padded_vocab_size) < config.vocab_size
    params["embedding"]["tokens"] *= real[:, None]
    if not config.tied:
        params["head"] *= real[:, None]
    return params
