"""Which parts stay: in every layer the best of its own, and as many in all of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.shrink.sizes import Sizes


class Importance(NamedTuple):
    """How much each part of a model is worth: the order counts, and among heads the sums."""

    neurons: Float[np.ndarray, "layers mlp_width"]
    heads: Float[np.ndarray, "layers heads"]
    """Of query heads; a group of keys and values is worth as much as those that stay of its own."""
    features: Float[np.ndarray, " width"]
    layers: Float[np.ndarray, " layers"]


class Kept(NamedTuple):
    """Indices of what stays, rising; of heads and neurons for each layer that stays."""

    layers: Int[np.ndarray, " kept_layers"]
    features: Int[np.ndarray, " kept_width"]
    groups: Int[np.ndarray, "kept_layers kept_groups"]
    heads: Int[np.ndarray, "kept_layers kept_heads"]
    neurons: Int[np.ndarray, "kept_layers kept_neurons"]


def select(importance: Importance, config: DecoderConfig, sizes: Sizes) -> Kept:
    """The most important parts; among equals the first.

    Args:
      importance: of the parts of the whole model.
      config: its architecture.
      sizes: how many stay.
    """
    layers = _best(importance.layers, sizes.layers)
    by_group = importance.heads[layers].reshape(len(layers), config.key_value_heads, -1)
    within = _best(by_group, sizes.heads // sizes.kv_heads)
    groups = _best(np.take_along_axis(by_group, within, -1).sum(-1), sizes.kv_heads)
    chosen = np.take_along_axis(within, groups[..., None], 1)
    heads = groups[..., None] * by_group.shape[-1] + chosen
    return Kept(
        layers,
        _best(importance.features, sizes.width),
        groups,
        heads.reshape(len(layers), -1),
        _best(importance.neurons[layers], sizes.mlp_width),
    )


def _best(scores: Float[np.ndarray, "*lead n"], count: int) -> Int[np.ndarray, "*lead count"]:
    return np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :count], axis=-1)
