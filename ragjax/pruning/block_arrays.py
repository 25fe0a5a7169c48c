"""A pruned block as arrays by name, as a file holds them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragjax.sparsity.calibrated.methods import MatrixFigures
from ragjax.sparsity.calibrated.stream import LayerFigures, PrunedBlock

_OF = ":"
"""Between the name of a kernel and that of a figure."""


def arrays_of(block: PrunedBlock) -> dict[str, np.ndarray]:
    """Kernels by name, figures of a kernel as `layers/mlp/up/kernel:sparsity`, and those of the block."""
    figures = block.figures
    arrays = {
        "layer": np.asarray(figures.layer),
        "error": np.asarray(figures.error),
        "seconds": np.asarray(figures.seconds),
        **block.kernels,
    }
    for name, each in figures.matrices.items():
        found = {f"{name}{_OF}{field}": value for field, value in each._asdict().items()}
        arrays |= {key: np.asarray(value) for key, value in found.items() if value is not None}
    return arrays


def block_of(arrays: dict[str, np.ndarray]) -> PrunedBlock:
    """The block that `arrays_of` made arrays of."""
    kernels = {name: values for name, values in arrays.items() if "/" in name and _OF not in name}
    matrices = {}
    for name in kernels:
        found: dict[str, Any] = {field: arrays.get(f"{name}{_OF}{field}") for field in MatrixFigures._fields}
        matrices[name] = MatrixFigures(**found)
    figures = LayerFigures(int(arrays["layer"]), float(arrays["error"]), matrices, float(arrays["seconds"]))
    return PrunedBlock(kernels, figures)
