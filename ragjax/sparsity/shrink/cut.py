"""A model cut to what is kept of it, block by block."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ragjax.models.blockwise import layer_of, next_hidden, one_layer
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.depth import keep_layers
from ragjax.sparsity.shrink.activation_importance import embedded
from ragjax.sparsity.shrink.axes import FEATURES, GROUPS, HEADS, NEURONS, take
from ragjax.sparsity.shrink.compensation import input_gram, refit
from ragjax.sparsity.shrink.progress import Progress, silent
from ragjax.sparsity.shrink.selection import Kept
from ragjax.sparsity.shrink.sizes import resized, sizes_of

Errors = dict[str, list[tuple[float, float]]]
"""By projection: relative error of its outputs in each layer, as it was cut and refit."""


class Cut(NamedTuple):
    """A smaller model."""

    config: DecoderConfig
    params: Params
    errors: Errors
    """Empty where nothing was refit."""


def cut(config: DecoderConfig, params: Params, kept: Kept) -> Cut:
    """The model with the kept parts alone, their weights as they were.

    It computes what the whole model does if what is removed puts out zeros, its layers hand on what
    they are given, and norms take their mean and variance over the kept features alone.

    Args:
      config: the architecture.
      params: its parameters.
      kept: what stays.
    """
    config, params = _without_layers_and_features(config, params, kept)
    blocks = [
        take(one_layer(params["layers"], layer), config, _parts(kept, layer))
        for layer in range(config.layers)
    ]
    return Cut(_with_parts(config, kept, NEURONS, HEADS), {**params, "layers": _stacked(blocks)}, {})


def cut_and_refit(
    config: DecoderConfig,
    params: Params,
    kept: Kept,
    tokens: Int[np.ndarray, "microbatches rows seq"],
    progress: Progress = silent,
) -> Cut:
    """`cut`, with the projections that read heads and neurons refit to make up for those that went.

    Layers and features go first. Then, block by block, attention's output projection is refit on what the
    cut blocks before hand on, and the MLP's on what that attention leads to. One block and what it is
    given by one microbatch are on the device at a time.

    Args:
      config: the architecture.
      params: its parameters.
      kept: what stays.
      tokens: the calibration text.
      progress: told of each layer.
    """
    config, params = _without_layers_and_features(config, params, kept)
    fewer_heads = _with_parts(config, kept, HEADS)
    small = _with_parts(config, kept, NEURONS, HEADS)
    hidden = embedded(config, params, tokens)
    errors: Errors = {}
    blocks = []
    for layer in range(config.layers):
        data = layer_of(config, layer)
        block, parts = one_layer(params["layers"], layer), _parts(kept, layer)
        if fewer_heads != config:
            within = np.arange(config.head_width)
            values = (parts[HEADS][:, None] * config.head_width + within).ravel()
            found = refit(
                block["attention"]["out"],
                input_gram(config, "attention/out", block, data, hidden),
                jnp.asarray(values),
            )
            block = take(block, config, {kind: parts[kind] for kind in (HEADS, GROUPS)})
            block["attention"]["out"] = found.projection
            errors.setdefault("attention/out", []).append((float(found.error_before), float(found.error)))
        if small != fewer_heads:
            found = refit(
                block["mlp"]["down"],
                input_gram(fewer_heads, "mlp/down", block, data, hidden),
                jnp.asarray(parts[NEURONS]),
            )
            block = take(block, config, {NEURONS: parts[NEURONS]})
            block["mlp"]["down"] = found.projection
            errors.setdefault("mlp/down", []).append((float(found.error_before), float(found.error)))
        blocks.append(block)
        if layer + 1 < config.layers:
            hidden = [np.asarray(next_hidden(block, data, x, config=small)) for x in hidden]
        progress(layer + 1, config.layers)
    return Cut(small, {**params, "layers": _stacked(blocks)}, errors)


def _without_layers_and_features(
    config: DecoderConfig, params: Params, kept: Kept
) -> tuple[DecoderConfig, Params]:
    params, config = keep_layers(params, config, tuple(int(layer) for layer in kept.layers))
    params = take(params, config, {FEATURES: kept.features})
    return resized(config, sizes_of(config)._replace(width=len(kept.features))), params


def _with_parts(config: DecoderConfig, kept: Kept, *kinds: str) -> DecoderConfig:
    sizes = sizes_of(config)
    if HEADS in kinds:
        sizes = sizes._replace(heads=kept.heads.shape[1], kv_heads=kept.groups.shape[1])
    if NEURONS in kinds:
        sizes = sizes._replace(mlp_width=kept.neurons.shape[1])
    return resized(config, sizes)


def _parts(kept: Kept, layer: int) -> dict[str, Int[np.ndarray, " kept"]]:
    return {HEADS: kept.heads[layer], GROUPS: kept.groups[layer], NEURONS: kept.neurons[layer]}


def _stacked(blocks: list[Params]) -> Params:
    return jax.tree.map(lambda *layers: jnp.stack(layers), *blocks)
