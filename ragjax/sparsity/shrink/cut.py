"""A model cut to what is kept of it, block by block."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from ragjax.models.blockwise import layer_of, next_hidden
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.hosts import to_host
from ragjax.parallel.rules import place
from ragjax.sparsity.calibrated.calibration import (
    Calibration,
    block_on_device,
    on_device,
    over,
    place_block,
)
from ragjax.sparsity.calibrated.residual_streams import embedded, handed_on
from ragjax.sparsity.depth import keep_layers
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


def cut(config: DecoderConfig, params: Params, kept: Kept, mesh: Mesh | None = None) -> Cut:
    """The model with the kept parts alone, their weights as they were.

    It computes what the whole model does if what is removed puts out zeros, its layers hand on what
    they are given, and norms take their mean and variance over the kept features alone.

    Args:
      config: the architecture.
      params: its parameters.
      kept: what stays.
      mesh: devices over which the result is split; none: JAX's default device.
    """
    params, config = keep_layers(params, config, tuple(int(layer) for layer in kept.layers))
    blocks = [
        to_host(take(block_on_device(params, layer, mesh), config, _parts(kept, layer)))
        for layer in range(config.layers)
    ]
    small = _with_parts(config, kept, FEATURES, HEADS, NEURONS)
    return Cut(small, _together(_around(params, config, kept), blocks, mesh), {})


def cut_and_refit(
    config: DecoderConfig,
    params: Params,
    kept: Kept,
    calibration: Calibration,
    progress: Progress = silent,
) -> Cut:
    """`cut`, with the projections that read heads and neurons refit to make up for those that went.

    Layers and features go first. Then, block by block, attention's output projection is refit on what the
    cut blocks before hand on, and the MLP's on what that attention leads to. One block and what it is
    given are on the device at a time.

    Args:
      config: the architecture.
      params: its parameters.
      kept: what stays.
      calibration: the text, and the devices that share it, over which the result is split.
      progress: told of each layer.
    """
    mesh = calibration.mesh
    if kept.heads.shape[1] == config.heads and kept.neurons.shape[1] == config.mlp_width:
        return cut(config, params, kept, mesh)
    params, config = keep_layers(params, config, tuple(int(layer) for layer in kept.layers))
    around = _around(params, config, kept)
    config = _with_parts(config, kept, FEATURES)
    fewer_heads = _with_parts(config, kept, HEADS)
    small = _with_parts(config, kept, HEADS, NEURONS)
    hidden = embedded(config, around, calibration)
    errors: Errors = {}
    blocks = []
    for layer in range(config.layers):
        data, parts = layer_of(config, layer), _parts(kept, layer)
        block = take(block_on_device(params, layer, mesh), config, {FEATURES: kept.features})
        if fewer_heads != config:
            within = np.arange(config.head_width)
            values = (parts[HEADS][:, None] * config.head_width + within).ravel()
            products = input_gram(config, "attention/out", block, data, hidden, mesh)
            found = refit(block["attention"]["out"], products, jnp.asarray(values))
            block = take(block, config, {kind: parts[kind] for kind in (HEADS, GROUPS)})
            block["attention"]["out"] = found.projection
            errors.setdefault("attention/out", []).append((float(found.error_before), float(found.error)))
        if small != fewer_heads:
            products = input_gram(fewer_heads, "mlp/down", block, data, hidden, mesh)
            found = refit(block["mlp"]["down"], products, jnp.asarray(parts[NEURONS]))
            block = take(block, config, {NEURONS: parts[NEURONS]})
            block["mlp"]["down"] = found.projection
            errors.setdefault("mlp/down", []).append((float(found.error_before), float(found.error)))
        block = place_block(block, mesh)
        blocks.append(to_host(block))
        if layer + 1 < config.layers:
            with over(mesh):
                for number, x in enumerate(hidden):
                    out = next_hidden(block, data, on_device(x, mesh), config=small)
                    hidden[number] = handed_on(out, x, mesh)
        progress(layer + 1, config.layers)
    return Cut(small, _together(around, blocks, mesh), errors)


def _around(params: Params, config: DecoderConfig, kept: Kept) -> Params:
    """What stands before and after the blocks, with the kept features alone."""
    around = {name: tree for name, tree in params.items() if name != "layers"}
    return take(around, config, {FEATURES: kept.features})


def _together(around: Params, blocks: list[Params], mesh: Mesh | None) -> Params:
    """The model of these blocks, on the host as yet, where it is to lie."""
    params = {**around, "layers": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}
    return jax.device_put(to_host(params)) if mesh is None else place(params, mesh)


def _with_parts(config: DecoderConfig, kept: Kept, *kinds: str) -> DecoderConfig:
    sizes = sizes_of(config)
    if FEATURES in kinds:
        sizes = sizes._replace(width=len(kept.features))
    if HEADS in kinds:
        sizes = sizes._replace(heads=kept.heads.shape[1], kv_heads=kept.groups.shape[1])
    if NEURONS in kinds:
        sizes = sizes._replace(mlp_width=kept.neurons.shape[1])
    return resized(config, sizes)


def _parts(kept: Kept, layer: int) -> dict[str, Int[np.ndarray, " kept"]]:
    return {
        FEATURES: kept.features,
        HEADS: kept.heads[layer],
        GROUPS: kept.groups[layer],
        NEURONS: kept.neurons[layer],
    }
