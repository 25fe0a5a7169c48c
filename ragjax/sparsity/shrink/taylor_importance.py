"""Importance by how much the loss would change, to first order, if a part were scaled down."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from ragjax.models.decoder import Params, logits
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder
from ragjax.sparsity.shrink.progress import Progress, silent
from ragjax.sparsity.shrink.selection import Importance

_OUT, _DOWN = "layers/attention/out", "layers/mlp/down"
_NORMS = ("layers/attention_norm", "layers/mlp_norm")


def taylor(
    config: DecoderConfig,
    params: Params,
    tokens: Int[np.ndarray, "microbatches rows seq"],
    progress: Progress = silent,
) -> Importance:
    """|dL/dg|, averaged over sequences, for a gate g = 1 that multiplies what a part puts out.

    That is the sum of activation times gradient over the sequence, and computed as the sum of weight times
    gradient over the weights behind the gate. L is the mean cross-entropy of a sequence's tokens. Gates of
    a layer stand on what it adds to the residual stream; those of a feature on what the norms of a block
    put out, where the values of all norms are summed.

    Michel et al., "Are Sixteen Heads Really Better than One?", https://arxiv.org/abs/1905.10650; Molchanov
    et al., "Importance Estimation for Neural Network Pruning", https://arxiv.org/abs/1906.10771

    The whole model is on the device, with the activations of one sequence.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: the calibration text.
      progress: told of each sequence.
    """
    sequences = tokens.reshape(-1, tokens.shape[-1])
    total: _Gates | None = None
    for number, sequence in enumerate(sequences):
        found = _gates(params, sequence[None], config=config)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        progress(number + 1, len(sequences))
    assert total is not None
    return Importance(*(np.asarray(each) / len(sequences) for each in jax.device_get(total)))


class _Gates(NamedTuple):
    """|dL/dg| of each part, as in `Importance`."""

    neurons: Float[Array, "layers mlp_width"]
    heads: Float[Array, "layers heads"]
    features: Float[Array, " width"]
    layers: Float[Array, " layers"]


@partial(jax.jit, static_argnames="config")
def _gates(params: Params, sequence: Int[Array, "1 seq"], *, config: DecoderConfig) -> _Gates:
    flat = flatten_dict(params, sep="/")
    behind = (_OUT, _DOWN, *_NORMS)
    weights = {name: leaf for name, leaf in flat.items() if name.rpartition("/")[0] in behind}

    def loss(weights: dict[str, Array]) -> Float[Array, ""]:
        whole = unflatten_dict({**flat, **weights}, sep="/")
        hidden = run_decoder(config, whole, sequence, remat="full").hidden[:, :-1]
        scores = jax.nn.log_softmax(logits(whole, hidden, config))
        return -jnp.take_along_axis(scores, sequence[:, 1:, None], -1).mean()

    changes = {name: weights[name] * g for name, g in jax.grad(loss)(weights).items()}
    neurons = changes[f"{_DOWN}/kernel"].sum(-1)
    values = changes[f"{_OUT}/kernel"].sum(-1)
    added = neurons.sum(-1) + values.sum(-1)
    added += sum(changes[f"{name}/bias"].sum(-1) for name in (_OUT, _DOWN) if f"{name}/bias" in changes)
    scales = [changes[f"{norm}/scale"] + changes.get(f"{norm}/bias", 0) for norm in _NORMS]
    features = jnp.abs(jnp.stack(scales)).sum((0, 1))
    return _Gates(
        neurons=jnp.abs(neurons),
        heads=jnp.abs(values.reshape(len(values), config.heads, config.head_width).sum(-1)),
        features=features,
        layers=jnp.abs(added),
    )
