"""Importance without a text: by the weights themselves, and none at all."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.shrink.axes import FEATURES, GROUPS, HEADS, NEURONS, sum_over
from ragjax.sparsity.shrink.selection import Importance


def magnitude(config: DecoderConfig, params: Params) -> Importance:
    """Euclidean norm of all weights that would go with a part.

    The keys and values of a group count for its query heads in equal shares; a layer is its matrices.

    Args:
      config: the architecture.
      params: its parameters.
    """
    share = config.heads // config.key_value_heads
    own, shared = (sum_over(params, config, kind, _square) for kind in (HEADS, GROUPS))
    layers = sum_over({"layers": params["layers"]}, config, NEURONS, _square).sum(-1)
    return Importance(
        neurons=np.sqrt(sum_over(params, config, NEURONS, _square)),
        heads=np.sqrt(own + np.repeat(shared / share, share, axis=-1)),
        features=np.sqrt(sum_over(params, config, FEATURES, _square)),
        layers=np.sqrt(layers + own.sum(-1) + shared.sum(-1)),
    )


def _square(name: str, leaf: Array) -> Array:
    return jnp.square(leaf)


def random(config: DecoderConfig, seed: int) -> Importance:
    """Numbers that say nothing: what a criterion must beat.

    Args:
      config: the architecture.
      seed: of the numbers.
    """
    shapes = ((config.layers, config.mlp_width), (config.layers, config.heads), config.width, config.layers)
    rng = np.random.default_rng(seed)
    return Importance(*(rng.random(shape) for shape in shapes))
