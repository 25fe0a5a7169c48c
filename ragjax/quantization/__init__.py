"""Fewer bits: weights as small integers with scales, and the products that read them as they are."""

from ragjax.quantization.grid import Grid, from_codes, grid, rounded, to_codes
from ragjax.quantization.quantized import Quantized, encoded, quantized
from ragjax.quantization.scheme import SCHEMES, Scheme

__all__ = [
    "SCHEMES",
    "Grid",
    "Quantized",
    "Scheme",
    "encoded",
    "from_codes",
    "grid",
    "quantized",
    "rounded",
    "to_codes",
]
