"""Masks small enough to look at: where a matrix keeps its weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_CELLS = 96
"""Rows and columns of an overview at most."""
_CORNER = 48
"""Inputs and outputs of the corner that is shown weight by weight."""


class MaskPicture(NamedTuple):
    """One matrix, seen from afar and from near."""

    overview: Float[np.ndarray, "rows columns"]
    """Share of weights that are kept, in cells that span the matrix; inputs from top to bottom."""
    corner: Bool[np.ndarray, "inputs outputs"]
    """True where a weight is kept, of the first inputs and outputs."""


def mask_picture(kept: Bool[np.ndarray, "in out"]) -> MaskPicture:
    """The picture of one mask.

    Args:
      kept: True where a weight is kept.
    """
    overview = kept.astype(np.float64)
    for axis in (0, 1):
        size = overview.shape[axis]
        cells = min(size, _CELLS)
        edges = np.arange(cells) * size // cells
        counts = np.diff([*edges, size])
        summed = np.add.reduceat(overview, edges, axis)
        overview = summed / (counts[:, None] if axis == 0 else counts)
    return MaskPicture(overview, kept[:_CORNER, :_CORNER])
