"""Heads of zeros, for files whose config has no field for the number of heads or their width."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig


class HeadShape(NamedTuple):
    """Heads of an attention, and their width."""

    kv_heads: int
    queries: int
    """Query heads to each head of keys and values."""
    head_width: int


def head_shape(config: DecoderConfig) -> HeadShape:
    """The heads of an architecture."""
    return HeadShape(config.key_value_heads, config.heads // config.key_value_heads, config.head_width)


def with_heads(config: DecoderConfig, heads: HeadShape) -> DecoderConfig:
    """The architecture with other heads that turn and scale as before."""
    count, rotary = heads.kv_heads * heads.queries, config.rotary
    if rotary is not None and rotary.width is None and heads.head_width != config.head_width:
        rotary = replace(rotary, width=config.head_width)
    return replace(
        config,
        heads=count,
        kv_heads=None if heads.queries == 1 else heads.kv_heads,
        head_size=None if count * heads.head_width == config.width else heads.head_width,
        rotary=rotary,
    )


def pad_heads(params: Params, config: DecoderConfig, to: HeadShape) -> tuple[Params, DecoderConfig]:
    """The same model with more or wider heads, of which what is new is zero and adds nothing.

    Scores are divided by the root of the new width: the queries are made larger by what that takes away.

    Args:
      params: parameters.
      config: their architecture.
      to: heads, in no respect fewer than there are.

    Returns:
      The padded parameters and their architecture.
    """
    now = head_shape(config)
    scale = (to.head_width / now.head_width) ** 0.5 if config.scale_attention else 1.0
    attention = params["layers"]["attention"]
    padded = {}
    for name, projection in attention.items():
        queries = (now.queries, to.queries) if name in ("query", "out") else (1, 1)
        ends = ((now.kv_heads, to.kv_heads), queries, (now.head_width, to.head_width))
        padded[name] = {
            kind: leaf
            if (name, kind) == ("out", "bias")
            else _padded(leaf * scale if name == "query" else leaf, ends, -2 if name == "out" else -1)
            for kind, leaf in projection.items()
        }
    layers = {**params["layers"], "attention": padded}
    return {**params, "layers": layers}, with_heads(config, to)


def _padded(leaf: Float[Array, "..."], ends: tuple[tuple[int, int], ...], axis: int) -> Float[Array, "..."]:
    """`leaf` with zeros at the ends of groups, heads and values, of which `axis` holds the product."""
    axis %= leaf.ndim
    before, after = leaf.shape[:axis], leaf.shape[axis + 1 :]
    apart = leaf.reshape(*before, *(now for now, _ in ends), *after)
    widths = [*((0, 0) for _ in before), *((0, to - now) for now, to in ends), *((0, 0) for _ in after)]
    return jnp.pad(apart, widths).reshape(*before, -1, *after)
