"""The sizes of a model that can be cut, and the architecture that has them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ragjax.errors import InputError, listing
from ragjax.models.decoder_config import DecoderConfig


class Sizes(NamedTuple):
    """What shrinking changes of an architecture; the width of a head stays."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int


def sizes_of(config: DecoderConfig) -> Sizes:
    """The sizes of an architecture."""
    return Sizes(config.layers, config.width, config.heads, config.key_value_heads, config.mlp_width)


def resized(config: DecoderConfig, sizes: Sizes) -> DecoderConfig:
    """The architecture with other sizes, and heads as wide as they were.

    Windows are those of the first layers; `ragjax.sparsity.depth.keep_layers` knows those of others.
    """
    head = config.head_width
    return replace(
        config,
        layers=sizes.layers,
        width=sizes.width,
        heads=sizes.heads,
        kv_heads=None if sizes.kv_heads == sizes.heads else sizes.kv_heads,
        head_size=None if sizes.heads * head == sizes.width else head,
        mlp_width=sizes.mlp_width,
    )


def explicit_sizes(
    config: DecoderConfig,
    *,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    mlp_width: int | None = None,
    tensor: int = 1,
) -> Sizes:
    """The sizes somebody asked for; what is not named stays.

    Where heads share keys and values and only `heads` is given, whole groups leave if that comes out
    even, else every group gives up as many query heads.

    Args:
      config: the model that is cut.
      layers: blocks that stay.
      width: residual width.
      heads: query heads.
      kv_heads: heads of keys and values.
      mlp_width: neurons of an MLP.
      tensor: devices that split each layer; heads and neurons must be divisible by it.

    Raises:
      InputError: names every size that the model cannot be cut to.
    """
    now = sizes_of(config)
    share = now.heads // now.kv_heads
    queries = now.heads if heads is None else heads
    if kv_heads is None:
        kv_heads = now.kv_heads if queries % share else queries // share
    asked = Sizes(
        now.layers if layers is None else layers,
        now.width if width is None else width,
        queries,
        kv_heads,
        now.mlp_width if mlp_width is None else mlp_width,
    )
    problems = [
        f"{name} must lie between 1 and the model's {most}, found {size}"
        for name, size, most in zip(Sizes._fields, asked, now, strict=True)
        if not 1 <= size <= most
    ]
    if not problems and (asked.heads % asked.kv_heads or asked.heads // asked.kv_heads > share):
        problems.append(
            f"heads {asked.heads} must be divisible by kv_heads {asked.kv_heads}, at most {share} to each"
        )
    problems += [
        f"{name} {getattr(asked, name)} must be divisible by tensor {tensor}"
        for name in ("heads", "kv_heads", "mlp_width")
        if getattr(asked, name) % tensor
    ]
    if problems:
        raise InputError(f"The model cannot be cut to these sizes:\n{listing(problems)}")
    return asked
