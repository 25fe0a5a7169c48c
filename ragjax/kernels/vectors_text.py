"""LLVM's text of constants and vectors of them, and of what is often done with vectors."""

from __future__ import annotations

import struct
from collections.abc import Iterable

LINE = 64
"""Bytes that a cache fetches at once."""


def constant(value: float) -> str:
    """As LLVM writes the float32 next to a number: the bits of the float64 that it is."""
    single = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.pack('>d', single).hex().upper()}"


def all_lanes(value: str, lanes: int, kind: str = "float") -> str:
    """A vector of one constant."""
    return f"<{', '.join([f'{kind} {value}'] * lanes)}>"


def lines(parts: Iterable[str]) -> str:
    """Parts of a text, one after another."""
    return "\n".join(parts)


def plus_product(to: str, x: str, y: str, total: str, lanes: int) -> str:
    """`to = x * y + total`, of vectors of float32, each a name or a constant."""
    vector = f"<{lanes} x float>"
    given = ", ".join(f"{vector} {part}" for part in (x, y, total))
    return f"{to} = call {vector} @llvm.fmuladd.v{lanes}f32({given})"


def everywhere(lanes: int) -> str:
    """The function `@everywhere`: a number in all lanes."""
    vector = f"<{lanes} x float>"
    return f"""
define {vector} @everywhere(float %value) alwaysinline {{
  %first = insertelement {vector} poison, float %value, i32 0
  %all = shufflevector {vector} %first, {vector} poison, <{lanes} x i32> zeroinitializer
  ret {vector} %all
}}"""


def declared_once(text: str) -> str:
    """A module whose parts may declare the same functions, without what is declared again."""
    declared = set()
    kept = []
    for line in text.splitlines():
        if not line.startswith("declare ") or line not in declared:
            kept.append(line)
        if line.startswith("declare "):
            declared.add(line)
    return "\n".join(kept)
