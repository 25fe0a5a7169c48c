"""LLVM's text of a product of a few rows with a matrix in panels: `panels.ll`, and the loops it calls."""

from __future__ import annotations

from pathlib import Path
from string import Template

from ragjax.kernels.machine import Vectors

_PER_ROW = 2
"""Vectors of a panel."""


def panel_width(vectors: Vectors) -> int:
    """Outputs that a panel holds of each input."""
    return _PER_ROW * vectors.lanes


def panels_text(vectors: Vectors, minor: int) -> str:
    """A module whose `handler` multiplies.

    Args:
      vectors: the processor's.
      minor: version of XLA's interface.
    """
    most = vectors.registers // (2 * _PER_ROW)
    shared = Template(Path(__file__).with_name("panels.ll").read_text()).substitute(
        vector=_vector(vectors), suffix=f"v{vectors.lanes}f32", width=panel_width(vectors), minor=minor,
        most=most, tile_count=most + 1,
        tiles=", ".join(["ptr null", *(f"ptr @tile.{rows}" for rows in range(1, most + 1))]),
    )  # fmt: skip
    return "\n".join([shared, *(_tile(rows, vectors) for rows in range(1, most + 1))])


def _vector(vectors: Vectors) -> str:
    return f"<{vectors.lanes} x float>"


def _tile(rows: int, vectors: Vectors) -> str:
    """A few rows times a panel: their sums stay in registers while its inputs go by, each read once."""
    lanes, vector = vectors.lanes, _vector(vectors)
    cells = [(row, part) for row in range(rows) for part in range(_PER_ROW)]
    sums = [
        f"  %sum.{r}.{p} = phi {vector} [ zeroinitializer, %entry ], [ %more.{r}.{p}, %along ]"
        for r, p in cells
    ]
    loads = [
        f"""
  %weights.at.{p} = getelementptr {vector}, ptr %panel, i64 %place.{p}
  %weights.{p} = load {vector}, ptr %weights.at.{p}, align 4"""
        for p in range(_PER_ROW)
    ]
    broadcasts = [
        f"""
  %skipped.{r} = mul i64 %inputs, {r}
  %index.{r} = add i64 %skipped.{r}, %input
  %x.at.{r} = getelementptr float, ptr %x, i64 %index.{r}
  %x.{r} = load float, ptr %x.at.{r}
  %one.{r} = insertelement {vector} poison, float %x.{r}, i32 0
  %all.{r} = shufflevector {vector} %one.{r}, {vector} poison, <{lanes} x i32> zeroinitializer"""
        for r in range(rows)
    ]
    products = [
        f"  %more.{r}.{p} = call {vector} @llvm.fmuladd.v{lanes}f32"
        f"({vector} %all.{r}, {vector} %weights.{p}, {vector} %sum.{r}.{p})"
        for r, p in cells
    ]
    stores = [
        f"""
  %behind.{r}.{p} = mul i64 %outputs, {r}
  %column.{r}.{p} = add i64 %behind.{r}.{p}, {p * lanes}
  %out.at.{r}.{p} = getelementptr float, ptr %out, i64 %column.{r}.{p}
  store {vector} %more.{r}.{p}, ptr %out.at.{r}.{p}, align 4"""
        for r, p in cells
    ]
    places = [f"  %place.{p} = add i64 %double, {p}" for p in range(_PER_ROW)]
    signature = "ptr noalias %x, ptr noalias %panel, ptr noalias %out, i64 %inputs, i64 %outputs"
    return "\n".join(
        [
            f"define void @tile.{rows}({signature}) {{",
            "entry:", "  br label %along", "along:",
            "  %input = phi i64 [ 0, %entry ], [ %input.next, %along ]",
            *sums, f"  %double = mul i64 %input, {_PER_ROW}", *places, *loads, *broadcasts, *products,
            "  %input.next = add i64 %input, 1",
            "  %is.more = icmp ult i64 %input.next, %inputs",
            "  br i1 %is.more, label %along, label %end",
            "end:", *stores, "  ret void", "}",
        ]
    )  # fmt: skip
