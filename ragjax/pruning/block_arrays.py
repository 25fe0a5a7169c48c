"""A block that is done as arrays by name, as a file holds them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragjax.pruning.unfinished import Arrays
from ragjax.sparsity.calibrated.methods import MatrixFigures
from ragjax.sparsity.calibrated.stream import LayerFigures, PrunedBlock

_OF = ":"
"""Between the name of a kernel and that of a figure."""


def figures_arrays(figures: Any) -> Arrays:
    """Figures of a block by their names, those of a matrix as `layers/mlp/up/kernel:error`.

    Args:
      figures: a NamedTuple of numbers, and `matrices`: by name NamedTuples of numbers, or None.
    """
    arrays = {key: np.asarray(value) for key, value in figures._asdict().items() if key != "matrices"}
    for name, each in figures.matrices.items():
        found = {f"{name}{_OF}{field}": value for field, value in each._asdict().items()}
        arrays |= {key: np.asarray(value) for key, value in found.items() if value is not None}
    return arrays


def figures_of(arrays: Arrays, kind: Any, of_matrix: Any) -> Any:
    """The figures that `figures_arrays` made arrays of.

    Args:
      arrays: these, and any others.
      kind: of a block's figures.
      of_matrix: kind of those of a matrix.
    """
    matrices: dict[str, dict[str, Any]] = {}
    for key, value in arrays.items():
        name, _, field = key.partition(_OF)
        if field:
            # Copied: a view would hold the whole file.
            matrices.setdefault(name, dict.fromkeys(of_matrix._fields))[field] = np.array(value)
    own = {key: arrays[key].item() for key in kind._fields if key != "matrices"}
    return kind(**own, matrices={name: of_matrix(**found) for name, found in matrices.items()})


def is_figure(key: str) -> bool:
    """Whether an array is a figure, and not a parameter."""
    return _OF in key or "/" not in key


def arrays_of(block: PrunedBlock) -> Arrays:
    """Kernels by name, and figures."""
    return {**figures_arrays(block.figures), **block.kernels}


def block_of(arrays: Arrays) -> PrunedBlock:
    """The block that `arrays_of` made arrays of."""
    kernels = {name: values for name, values in arrays.items() if not is_figure(name)}
    return PrunedBlock(kernels, figures_of(arrays, LayerFigures, MatrixFigures))
