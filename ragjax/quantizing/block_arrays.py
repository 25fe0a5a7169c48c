"""A quantized block as arrays by name, as a file holds them, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from ragjax.quantization.block import QuantizedFigures
from ragjax.quantization.quantized import Quantized
from ragjax.quantization.scheme import Scheme
from ragjax.quantization.stream import KeptBlock, LayerFigures

_OF = ":"
"""Between the name of a kernel and that of a figure."""
_PARTS = tuple(field.name for field in fields(Quantized) if not field.metadata.get("static"))


def arrays_of(block: KeptBlock) -> dict[str, np.ndarray]:
    """Parameters by name, those of small integers in parts, figures of a kernel as `name:error`, and those of
    the block."""
    figures = block.figures
    arrays = {
        "layer": np.asarray(figures.layer),
        "error": np.asarray(figures.error),
        "seconds": np.asarray(figures.seconds),
    }
    for name, leaf in block.kept.items():
        if isinstance(leaf, Quantized):
            parts = {f"{name}/{part}": getattr(leaf, part) for part in _PARTS}
            arrays |= {key: np.asarray(values) for key, values in parts.items() if values is not None}
        else:
            arrays[name] = leaf
    for name, each in figures.matrices.items():
        arrays |= {f"{name}{_OF}{field}": np.asarray(value) for field, value in each._asdict().items()}
    return arrays


def block_of(arrays: dict[str, np.ndarray], scheme: Scheme) -> KeptBlock:
    """The block that `arrays_of` made arrays of.

    Args:
      arrays: by name.
      scheme: of its integers.
    """
    kept: dict[str, np.ndarray | Quantized] = {}
    matrices: dict[str, dict[str, Any]] = {}
    for key, values in arrays.items():
        name, _, figure = key.partition(_OF)
        parent, _, part = name.rpartition("/")
        if figure:
            matrices.setdefault(name, {})[figure] = values
        elif f"{parent}/codes" in arrays and part in _PARTS:
            parts: dict[str, Any] = {each: arrays.get(f"{parent}/{each}") for each in _PARTS}
            kept[parent] = Quantized(**parts, scheme=scheme)
        elif parent:
            kept[name] = values
    figures = LayerFigures(
        int(arrays["layer"]),
        float(arrays["error"]),
        {name: QuantizedFigures(**found) for name, found in matrices.items()},
        float(arrays["seconds"]),
    )
    return KeptBlock(kept, figures)
