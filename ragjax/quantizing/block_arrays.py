"""A quantized block as arrays by name, as a file holds them, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from ragjax.pruning.block_arrays import figures_arrays, figures_of, is_figure
from ragjax.pruning.unfinished import Arrays
from ragjax.quantization.block import QuantizedFigures
from ragjax.quantization.quantized import Quantized
from ragjax.quantization.scheme import Scheme
from ragjax.quantization.stream import KeptBlock, LayerFigures

_PARTS = tuple(field.name for field in fields(Quantized) if not field.metadata.get("static"))


def arrays_of(block: KeptBlock) -> Arrays:
    """Parameters by name, those of small integers in parts, and figures."""
    arrays = figures_arrays(block.figures)
    for name, leaf in block.kept.items():
        if isinstance(leaf, Quantized):
            parts = {f"{name}/{part}": getattr(leaf, part) for part in _PARTS}
            arrays |= {key: np.asarray(values) for key, values in parts.items() if values is not None}
        else:
            arrays[name] = leaf
    return arrays


def block_of(arrays: Arrays, scheme: Scheme) -> KeptBlock:
    """The block that `arrays_of` made arrays of.

    Args:
      arrays: by name.
      scheme: of its integers.
    """
    kept: dict[str, np.ndarray | Quantized] = {}
    for name, values in arrays.items():
        parent, _, part = name.rpartition("/")
        if is_figure(name):
            continue
        if f"{parent}/codes" in arrays and part in _PARTS:
            parts: dict[str, Any] = {each: arrays.get(f"{parent}/{each}") for each in _PARTS}
            kept[parent] = Quantized(**parts, scheme=scheme)
        else:
            kept[name] = values
    return KeptBlock(kept, figures_of(arrays, LayerFigures, QuantizedFigures))
