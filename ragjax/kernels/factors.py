"""Kinds of products of rows with a matrix in panels."""

from __future__ import annotations

from typing import NamedTuple


class Factors(NamedTuple):
    """What is multiplied, by the types that LLVM names; a step of the loop takes what stands together."""

    name: str
    """Of the custom call; none where it is not one by itself."""
    x: str
    """What a row has for a step."""
    weights: str
    """An element of a panel."""
    out: str
    """A sum."""
    per_output: int = 1
    """Elements of a panel for an output and a step."""
    half: int = 0
    """Of a group of integers of 4 bits, which is a step: the inputs below, and as many above; else 0."""


FLOATS = Factors("ragjax_panels_f32", "float", "float", "float")
SMALL_WEIGHTS = Factors("ragjax_panels_i8", "float", "i8", "float")
"""Integers of 8 bits, which become floats in the registers, times floats."""
INTEGERS = Factors("", "i32", "i8", "i32", per_output=4)
"""Integers of 8 bits times integers without a sign, by AVX-512 VNNI, in `rounded.ll`."""


def small_groups(half: int) -> Factors:
    """Integers of 4 bits, two to a byte, whose groups each have a scale in 16 bits, times floats."""
    return Factors(f"ragjax_panels_i4_{half}", f"[{2 * half} x float]", "i8", "float", half + 2, half)
