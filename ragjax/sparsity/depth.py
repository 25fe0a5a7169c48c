"""Depth: a student that starts as some of its teacher's layers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from ragjax.errors import InputError
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig


def choose_layers(total: int, keep: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Which of the teacher's layers the student keeps.

    Args:
      total: layers of the teacher.
      keep: how many, spread evenly with both ends (12 to 6: 0, 2, 4, 7, 9, 11, as DistilGPT2; one:
        the first); or which, counted from 0; none: all.

    Returns:
      Indices of layers, rising.

    Raises:
      InputError: if the teacher has no such layers.
    """
    if keep is None:
        return tuple(range(total))
    if isinstance(keep, int):
        if not 1 <= keep <= total:
            raise InputError(f"student.layers must lie between 1 and the teacher's {total}, found {keep}")
        return tuple(round(i * (total - 1) / max(keep - 1, 1)) for i in range(keep))
    wrong = [i for i in keep if not 0 <= i < total]
    if wrong or not keep or list(keep) != sorted(set(keep)):
        raise InputError(
            f"student.layers must rise without repeats and lie between 0 and {total - 1}, the teacher's "
            f"last layer; found {tuple(keep)}"
        )
    return tuple(keep)


def keep_layers(
    params: Params, config: DecoderConfig, layers: tuple[int, ...]
) -> tuple[Params, DecoderConfig]:
    """The model with these layers alone, each computing what it computed before.

    Windows go with their layer. Where scores are divided by the number of the layer, the change of
    that number is taken up by the query projection.

    Args:
      params: parameters in the layout of `ragjax.models.decoder`.
      config: their architecture.
      layers: indices of the layers to keep, rising.

    Returns:
      The smaller parameters and their architecture.

    Raises:
      InputError: if there are no such layers.
    """
    layers = choose_layers(config.layers, tuple(layers))
    index = np.asarray(layers)
    blocks = jax.tree.map(lambda leaf: leaf[index], params["layers"])
    windows = tuple(config.layer_windows[i] for i in layers) if any(config.windows) else ()
    kept = dataclasses.replace(config, layers=len(layers), windows=windows if any(windows) else ())
    before = np.asarray(config.attention_scales)[index]
    ratio = (before / np.asarray(kept.attention_scales)).astype(np.float32)
    if (ratio != 1).any():
        query = jax.tree.map(
            lambda leaf: leaf * ratio.reshape(-1, *[1] * (leaf.ndim - 1)), blocks["attention"]["query"]
        )
        blocks = {**blocks, "attention": {**blocks["attention"], "query": query}}
    return {**params, "layers": blocks}, kept
