"""Importance by how much the loss would change, to first order, if a part were scaled down."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from ragjax.models.decoder import Params, logits
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder
from ragjax.parallel.hosts import to_host
from ragjax.parallel.mesh import BATCH_AXES, batch_shards
from ragjax.parallel.pin import pin_batch
from ragjax.parallel.rules import place
from ragjax.sparsity.calibrated.calibration import Calibration, default_device, on_device, over
from ragjax.sparsity.shrink.progress import Progress, silent
from ragjax.sparsity.shrink.selection import Importance

_OUT, _DOWN = "layers/attention/out", "layers/mlp/down"
_NORMS = ("layers/attention_norm", "layers/mlp_norm")


def taylor(
    config: DecoderConfig, params: Params, calibration: Calibration, progress: Progress = silent
) -> Importance:
    """|dL/dg|, averaged over sequences, for a gate g = 1 that multiplies what a part puts out.

    That is the sum of activation times gradient over the sequence, and computed as the sum of weight times
    gradient over the weights behind the gate. L is the mean cross-entropy of a sequence's tokens. Gates of
    a layer stand on what it adds to the residual stream; those of a feature on what the norms of a block
    put out, where the values of all norms are summed.

    Michel et al., "Are Sixteen Heads Really Better than One?", https://arxiv.org/abs/1905.10650; Molchanov
    et al., "Importance Estimation for Neural Network Pruning", https://arxiv.org/abs/1906.10771

    The whole model is on the device, or split over the mesh, with the activations of one sequence and a
    gradient of its own; those that share the data have one sequence each at a time.

    Args:
      config: the architecture.
      params: its parameters.
      calibration: the text, and the devices that share it.
      progress: told of each sequence, or of as many as there are at a time.
    """
    tokens, mesh = calibration
    params = jax.device_put(params, default_device()) if mesh is None else place(params, mesh)
    sequences = tokens.reshape(-1, tokens.shape[-1])
    at_once = 1 if mesh is None else batch_shards(mesh)
    total: _Gates | None = None
    for done in range(0, len(sequences), at_once):
        with over(mesh):
            found = _gates(params, on_device(sequences[done : done + at_once], mesh), config=config)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        progress(done + at_once, len(sequences))
    return Importance(*(each / len(sequences) for each in to_host(total)))


class _Gates(NamedTuple):
    """|dL/dg| of each part, as in `Importance`."""

    neurons: Float[Array, "layers mlp_width"]
    heads: Float[Array, "layers heads"]
    features: Float[Array, " width"]
    layers: Float[Array, " layers"]


@partial(jax.jit, static_argnames="config")
def _gates(params: Params, sequences: Int[Array, "rows seq"], *, config: DecoderConfig) -> _Gates:
    """Summed over sequences."""
    flat = flatten_dict(params, sep="/")
    behind = (_OUT, _DOWN, *_NORMS)
    weights = {name: leaf for name, leaf in flat.items() if name.rpartition("/")[0] in behind}

    def loss(weights: dict[str, Array], sequence: Int[Array, " seq"]) -> Float[Array, ""]:
        whole = unflatten_dict({**flat, **weights}, sep="/")
        hidden = run_decoder(config, whole, sequence[None], remat="full").hidden[:, :-1]
        scores = jax.nn.log_softmax(logits(whole, hidden, config))
        return -jnp.take_along_axis(scores, sequence[None, 1:, None], -1).mean()

    # Of each sequence on its own, since sizes are taken before they are summed.
    split = BATCH_AXES if len(sequences) > 1 else None
    gradient = jax.vmap(jax.grad(loss), in_axes=(None, 0), spmd_axis_name=split)(weights, sequences)
    changes = {name: weights[name] * pin_batch(g) for name, g in gradient.items()}
    neurons = changes[f"{_DOWN}/kernel"].sum(-1)
    values = changes[f"{_OUT}/kernel"].sum(-1)
    added = neurons.sum(-1) + values.sum(-1)
    added += sum(changes[f"{name}/bias"].sum(-1) for name in (_OUT, _DOWN) if f"{name}/bias" in changes)
    by_head = values.reshape(*values.shape[:2], config.heads, config.head_width).sum(-1)
    scales = [changes[f"{norm}/scale"] + changes.get(f"{norm}/bias", 0) for norm in _NORMS]
    features = jnp.abs(jnp.stack(scales)).sum((0, 1, 2))
    return _Gates(
        neurons=jnp.abs(neurons).sum(0),
        heads=jnp.abs(by_head).sum(0),
        features=features,
        layers=jnp.abs(added).sum(0),
    )
