"""LLVM's text of a product of a few rows with a matrix in panels: `panels.ll`, and the loops it calls."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import NamedTuple

from ragjax.kernels.machine import Vectors

_PER_ROW = 2
"""Vectors of a panel."""


class Factors(NamedTuple):
    """What is multiplied."""

    weights: str
    """Type of a weight in memory, as LLVM names it."""
    out: str
    """Type of a sum, and of what x has for it at once."""
    at_once: int = 1
    """Inputs of an output that stand together in a panel, and are multiplied at once."""


FLOATS = Factors("float", "float")
SMALL_WEIGHTS = Factors("i8", "float")
"""Integers of 8 bits, which become floats in the registers, times floats."""
INTEGERS = Factors("i8", "i32", at_once=4)
"""Integers of 8 bits times integers without a sign, by the instruction for it (AVX-512 VNNI)."""


def panel_width(vectors: Vectors) -> int:
    """Outputs that a panel holds of each input."""
    return _PER_ROW * vectors.lanes


def panels_text(factors: Factors, vectors: Vectors, minor: int) -> str:
    """A module whose `handler` multiplies.

    Args:
      factors: what with what.
      vectors: the processor's.
      minor: version of XLA's interface.
    """
    most = vectors.registers // (2 * _PER_ROW)
    shared = Template(Path(__file__).with_name("panels.ll").read_text()).substitute(
        weights=factors.weights, out=factors.out, row=factors.at_once * panel_width(vectors),
        width=panel_width(vectors), minor=minor, most=most, tile_count=most + 1,
        tiles=", ".join(["ptr null", *(f"ptr @tile.{rows}" for rows in range(1, most + 1))]),
    )  # fmt: skip
    tiles = [_tile(rows, factors, vectors.lanes) for rows in range(1, most + 1)]
    return "\n".join([shared, _declaration(factors, vectors.lanes), *tiles])


def _declaration(factors: Factors, lanes: int) -> str:
    vector = f"<{lanes} x {factors.out}>"
    return f"declare {vector} @{_function(factors, lanes)}({vector}, {vector}, {vector})"


def _function(factors: Factors, lanes: int) -> str:
    """What adds a product to a sum."""
    return "llvm.x86.avx512.vpdpbusd.512" if factors == INTEGERS else f"llvm.fmuladd.v{lanes}f32"


def _tile(rows: int, factors: Factors, lanes: int) -> str:
    """A few rows times a panel: their sums stay in registers while its inputs go by, each read once."""
    parts, sums = range(_PER_ROW), f"<{lanes} x {factors.out}>"
    cells = [(row, part) for row in range(rows) for part in parts]
    carried = [
        f"  %sum.{r}.{p} = phi {sums} [ zeroinitializer, %entry ], [ %more.{r}.{p}, %along ]"
        for r, p in cells
    ]
    stores = [
        f"""
  %behind.{r}.{p} = mul i64 %outputs, {r}
  %column.{r}.{p} = add i64 %behind.{r}.{p}, {p * lanes}
  %out.at.{r}.{p} = getelementptr {factors.out}, ptr %out, i64 %column.{r}.{p}
  store {sums} %more.{r}.{p}, ptr %out.at.{r}.{p}, align 4"""
        for r, p in cells
    ]
    return f"""
define void @tile.{rows}(ptr noalias %x, ptr noalias %panel, ptr noalias %out, i64 %inputs, i64 %outputs) {{
entry:
  br label %along

along:
  %input = phi i64 [ 0, %entry ], [ %input.next, %along ]
{_lines(carried)}
  %row.of.panel = mul i64 %input, {_PER_ROW}
{_lines(_weights(part, factors, lanes) for part in parts)}
{_lines(_everywhere(row, factors, lanes) for row in range(rows))}
{_lines(_more(row, part, factors, lanes) for row, part in cells)}
  %input.next = add i64 %input, 1
  %is.more = icmp ult i64 %input.next, %inputs
  br i1 %is.more, label %along, label %end

end:
{_lines(stores)}
  ret void
}}"""


def _weights(part: int, factors: Factors, lanes: int) -> str:
    """A vector of the panel, in `%weights`, of the type of the sums."""
    stored = f"<{lanes * factors.at_once} x {factors.weights}>"
    read = f"""
  %vector.{part} = add i64 %row.of.panel, {part}
  %weights.at.{part} = getelementptr {stored}, ptr %panel, i64 %vector.{part}"""
    if factors.weights == "i8" and factors.out == "float":
        return f"""{read}
  %small.{part} = load {stored}, ptr %weights.at.{part}, align 1
  %weights.{part} = sitofp {stored} %small.{part} to <{lanes} x float>"""
    return f"""{read}
  %weights.{part} = load <{lanes} x {factors.out}>, ptr %weights.at.{part}, align 4"""


def _everywhere(row: int, factors: Factors, lanes: int) -> str:
    """What a row has at this input, in all lanes of `%x.all`."""
    scalar = factors.out
    vector = f"<{lanes} x {scalar}>"
    return f"""
  %skipped.{row} = mul i64 %inputs, {row}
  %index.{row} = add i64 %skipped.{row}, %input
  %x.at.{row} = getelementptr {scalar}, ptr %x, i64 %index.{row}
  %x.{row} = load {scalar}, ptr %x.at.{row}, align {factors.at_once}
  %x.first.{row} = insertelement {vector} poison, {scalar} %x.{row}, i32 0
  %x.all.{row} = shufflevector {vector} %x.first.{row}, {vector} poison, <{lanes} x i32> zeroinitializer"""


def _more(row: int, part: int, factors: Factors, lanes: int) -> str:
    """A sum with one product more."""
    vector = f"<{lanes} x {factors.out}>"
    names = f"x.all.{row}", f"weights.{part}", f"sum.{row}.{part}"
    x, weights, sums = (f"{vector} %{name}" for name in names)
    given = (sums, x, weights) if factors == INTEGERS else (x, weights, sums)
    return f"  %more.{row}.{part} = call {vector} @{_function(factors, lanes)}({', '.join(given)})"


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)
