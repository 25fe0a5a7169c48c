"""LLVM's text of a product of a few rows with a matrix in panels: `panels.ll`, and the loops it calls."""

from __future__ import annotations

from pathlib import Path
from string import Template

from ragjax.kernels.factors import Factors
from ragjax.kernels.machine import Vectors
from ragjax.kernels.tiles import VECTORS, step_bytes, tiles


def panel_width(vectors: Vectors) -> int:
    """Outputs that a panel holds of each input."""
    return VECTORS * vectors.lanes


def panels_text(factors: Factors, vectors: Vectors) -> str:
    """A kernel that multiplies.

    Args:
      factors: what with what.
      vectors: the processor's.
    """
    # As many rows as there is room in the registers for their sums, in half of them.
    most = vectors.registers // (2 * VECTORS * (2 if factors.half else 1))
    pointers, functions = tiles(most, factors, vectors.lanes)
    product = Template(Path(__file__).with_name("panels.ll").read_text()).substitute(
        weights=factors.weights, x=factors.x, row=factors.per_output * panel_width(vectors),
        width=panel_width(vectors), most=most, tile_count=most + 1,
        most_less_1=most - 1, step_bytes=step_bytes(factors, vectors.lanes),
        aside=most * panel_width(vectors),
        tiles=pointers,
    )  # fmt: skip
    return "\n".join([product, functions])
