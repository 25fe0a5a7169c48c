"""Importance by what a part puts out on a calibration text, measured block by block.

Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron),
https://arxiv.org/abs/2407.14679; layers as Men et al., "ShortGPT", https://arxiv.org/abs/2403.03853.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ragjax.models.blockwise import layer_of, run_block
from ragjax.models.decoder import LayerData, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.hosts import to_host
from ragjax.sparsity.calibrated.calibration import Calibration, block_on_device, on_device, over
from ragjax.sparsity.calibrated.residual_streams import embedded, handed_on
from ragjax.sparsity.shrink.progress import Progress, silent
from ragjax.sparsity.shrink.selection import Importance


class _Sums(NamedTuple):
    """Of one block, over sequences: of the squares of what a part puts out, on average over the sequence."""

    neurons: Float[Array, " mlp_width"]
    heads: Float[Array, " heads"]
    features: Float[Array, "norms width"]
    similarity: Float[Array, ""]
    """Of the cosine between the residual streams before and after the block, averaged over the sequence."""


def activation(
    config: DecoderConfig, params: Params, calibration: Calibration, progress: Progress = silent
) -> Importance:
    """Mean size over the sequence, then the Euclidean norm over sequences.

    The size of a neuron is the absolute value of its activation, that of a head the norm of its output,
    that of a feature the absolute value of it in what the norms of a block put out, summed over all
    norms of all blocks. A layer is worth 1 - cos(input, output).

    One block's activations are on the device at a time.

    Args:
      config: the architecture.
      params: its parameters.
      calibration: the text, and the devices that share it.
      progress: told of each layer.
    """
    mesh = calibration.mesh
    hidden = embedded(config, params, calibration)
    found = []
    for layer in range(config.layers):
        block, data = block_on_device(params, layer, mesh), layer_of(config, layer)
        sums = []
        for number, x in enumerate(hidden):
            with over(mesh):
                of_batch, after = _measure(block, data, on_device(x, mesh), config=config)
            sums.append(of_batch)
            hidden[number] = handed_on(after, x, mesh)
        found.append(jax.tree.map(lambda *each: np.sum(each, axis=0), *to_host(sums)))
        progress(layer + 1, config.layers)
    neurons, heads, features, similarity = (np.stack(each) for each in zip(*found, strict=True))
    sequences = calibration.tokens.shape[0] * calibration.tokens.shape[1]
    return Importance(
        neurons=np.sqrt(neurons),
        heads=np.sqrt(heads),
        features=np.sqrt(features).sum((0, 1)),
        layers=1 - similarity / sequences,
    )


@partial(jax.jit, static_argnames="config")
def _measure(
    block: Params, data: LayerData, hidden: Float[Array, "rows seq width"], *, config: DecoderConfig
) -> tuple[_Sums, Float[Array, "rows seq width"]]:
    run = run_block(config, block, data, hidden)

    def squared(sizes: Float[Array, "rows seq parts"]) -> Float[Array, " parts"]:
        return jnp.square(sizes.mean(1)).sum(0)

    heads = run.inputs["attention/out/kernel"]
    heads = heads.reshape(*heads.shape[:2], config.heads, config.head_width)
    normed = [run.inputs[f"{name}/kernel"] for name in ("attention/query", "mlp/up")]
    lengths = jnp.linalg.norm(hidden, axis=-1) * jnp.linalg.norm(run.hidden, axis=-1)
    cosine = (hidden * run.hidden).sum(-1) / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)
    sums = _Sums(
        squared(jnp.abs(run.inputs["mlp/down/kernel"])),
        squared(jnp.linalg.norm(heads, axis=-1)),
        jnp.stack([squared(jnp.abs(x)) for x in normed]),
        cosine.mean(1).sum(),
    )
    return sums, run.hidden
