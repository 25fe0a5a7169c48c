"""A model quantized as its blocks go by: each is given what the quantized ones before it hand on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Shaped

from ragjax.models.blockwise import one_layer
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.hosts import to_host
from ragjax.parallel.rules import place
from ragjax.quantization.block import CALIBRATED, How, QuantizedFigures, quantize_block
from ragjax.quantization.quantized import Quantized
from ragjax.sparsity.calibrated.calibration import Calibration, default_device
from ragjax.sparsity.calibrated.changed_block import Leaves, Watched, change_block, pass_block
from ragjax.sparsity.calibrated.residual_streams import embedded
from ragjax.sparsity.calibrated.statistics import Statistics, readers

_PREFIX = "layers/"


class LayerFigures(NamedTuple):
    """What became of one block."""

    layer: int
    """From 0."""
    error: float
    """||B'(x) - B(x)|| / ||B(x) - x|| of what block B adds to its input x, on one microbatch, of its weights
    alone."""
    matrices: dict[str, QuantizedFigures]
    """By name of the kernel."""
    seconds: float
    """How long it took."""


class KeptBlock(NamedTuple):
    """A block that is done."""

    kept: dict[str, Shaped[np.ndarray, "..."] | Quantized]
    """What is new of its parameters, by name in the block, on the host."""
    figures: LayerFigures


def quantize_blocks(
    config: DecoderConfig,
    params: Params,
    calibration: Calibration,
    *,
    method: str,
    how: How,
    done: Sequence[KeptBlock] = (),
    keep: Callable[[int, KeptBlock], None] | None = None,
    within: AbstractContextManager[Any] | None = None,
    progress: Callable[[LayerFigures], None] = lambda figures: None,
) -> tuple[Params, list[LayerFigures]]:
    """Quantizes a model block by block.

    Where activations are to be rounded too, blocks are given activations that are not: those of a text are
    looked at as they are.

    Args:
      config: the architecture.
      params: the parameters, on the host or on devices; left as they are.
      calibration: the text.
      method: a key of `CALIBRATED`.
      how: what does not differ between blocks.
      done: the first blocks, where an earlier call has quantized them; they hand on what they make.
      keep: given each block that is done here, by its number, for a later call.
      within: entered while blocks are quantized here; none: nothing is.
      progress: told of each block that is done here.

    Returns:
      Parameters with quantized kernels, and what had to change with them, on the host or on the mesh of the
      calibration; and figures of all layers.
    """
    first = one_layer(params["layers"], 0)
    kernels = [name for name in flatten_dict(first, sep="/") if name.endswith("/kernel")]
    watched = Watched(readers(config, first, kernels), gram=True, sizes=CALIBRATED[method].sizes)
    # Nobody is given anything where all are done.
    hidden = embedded(config, params, calibration) if len(done) < config.layers else []
    blocks: list[KeptBlock] = []

    def change(leaves: Leaves, sums: Statistics):
        made = quantize_block(leaves, sums, config=config, method=method, how=how)
        return made.run, made

    for layer, before in enumerate(done):
        if hidden:
            pass_block(config, layer, params, hidden, calibration, to_host(_whole(before.kept)))
        blocks.append(before)
    with within or nullcontext():
        for layer in range(len(done), config.layers):
            began = time.monotonic()
            # What is new has one name, under which it is let go of below.
            made, error = change_block(config, layer, params, hidden, calibration, watched, change)[1:]
            kept = to_host(made.kept)
            matrices = {_PREFIX + name: each for name, each in to_host(made.figures).items()}
            del made
            blocks.append(KeptBlock(kept, LayerFigures(layer, error, matrices, time.monotonic() - began)))
            if keep is not None:
                keep(layer, blocks[-1])
            progress(blocks[-1].figures)
    return _with_layers(params, [b.kept for b in blocks], calibration.mesh), [b.figures for b in blocks]


@jax.jit
def _whole(kept: dict[str, Any]) -> Leaves:
    """What is new of a block as plain arrays."""
    return {name: leaf.whole() if isinstance(leaf, Quantized) else leaf for name, leaf in kept.items()}


def _with_layers(params: Params, kept: Sequence[dict[str, Any]], mesh: Mesh | None) -> Params:
    """The parameters with what is new of each layer, stacked, where the others lie."""
    stacked = jax.tree.map(lambda *layers: np.stack(layers), *kept)
    new = unflatten_dict({_PREFIX + name: leaf for name, leaf in stacked.items()}, sep="/")
    if mesh is not None:
        new = place(new, mesh)
    elif isinstance(jax.tree.leaves(params)[0], jax.Array):
        new = jax.device_put(new, default_device())
    return unflatten_dict(flatten_dict(params, sep="/") | flatten_dict(new, sep="/"), sep="/")
