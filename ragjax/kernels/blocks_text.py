"""LLVM's text of a product of large matrices: `blocks.ll`, and the loops it calls."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import NamedTuple

from ragjax.kernels.machine import Vectors
from ragjax.kernels.panels_text import panel_width
from ragjax.kernels.sharing import shared_text
from ragjax.kernels.tiles import VECTORS
from ragjax.kernels.vectors_text import plus_product

_ROOM = 49_152
"""Floats of y that are copied into panels at once: 192 KiB, which a core's own cache holds."""
_MOST_ROWS, _LEAST_ROWS = 1024, 64
"""Of a piece."""
_LINE = 16
"""Floats that a cache fetches at once."""


class Sides(NamedTuple):
    """How the factors of a product are given."""

    x_transposed: bool = False
    """Whether x is [in, rows]."""
    y_transposed: bool = False
    """Whether y is [out, in]."""
    adds: bool = False
    """Whether the product is added to what stands where it goes."""


def blocks_text(sides: Sides, vectors: Vectors, minor: int) -> str:
    """A module whose `handler` multiplies.

    Args:
      sides: how the factors are given.
      vectors: the processor's.
      minor: version of XLA's interface.
    """
    width, lanes = panel_width(vectors), vectors.lanes
    # As many rows as there is room in the registers for their sums, in half of them.
    tile = vectors.registers // (2 * VECTORS)
    # Of a transposed y all inputs of a column stand together: few columns, whose inputs are all needed.
    across = width * (2 if sides.y_transposed else 4)
    product = Template(Path(__file__).with_name("blocks.ll").read_text()).substitute(
        tile_count=tile + 1,
        tiles=", ".join(["ptr null", *(f"ptr @tile.{rows}" for rows in range(1, tile + 1))]),
        tile=tile, width=width, lanes=lanes, columns=across, deep=_ROOM // across, room=_ROOM,
        pieces_less_1=3 * (os.cpu_count() or 1) - 1, most_rows=_MOST_ROWS, least_rows=_LEAST_ROWS,
        adds="true" if sides.adds else "false",
        inputs_axis=0 if sides.x_transposed else 1,
        x_first=_first("x", "%input", "%row", "%rows") if sides.x_transposed
        else _first("x", "%row", "%input", "%inputs"),
        x_stride="%rows" if sides.x_transposed else "%inputs",
        y_first=_first("y", "%column.first", "%input", "%inputs") if sides.y_transposed
        else _first("y", "%input", "%column.first", "%columns"),
        y_stride="%inputs" if sides.y_transposed else "%columns",
        ahead=_ahead(sides, tile),
    )  # fmt: skip
    copy = _copy_transposed(lanes) if sides.y_transposed else _copy(lanes)
    functions = (_tile(rows, lanes, sides.x_transposed) for rows in range(1, tile + 1))
    return "\n".join([product, copy, *functions, _declarations(lanes), shared_text(minor)])


def _first(factor: str, line: str, place: str, stride: str) -> str:
    """The index of the first element that is read of a factor."""
    return f"""
  %{factor}.lines = mul i64 {line}, {stride}
  %{factor}.first = add i64 %{factor}.lines, {place}"""


def _ahead(sides: Sides, tile: int) -> str:
    """What a tile fetches into the cache meanwhile: from `%ahead` on, and `%each` bytes on at each step.

    The first tiles of a block fetch what is copied next. Where x is transposed, its lines are far apart: of
    some rows the first tile fetches what the next rows read.
    """
    if sides.x_transposed:
        return f"""
  %ahead = getelementptr float, ptr %x.here, i64 {tile}
  %line.bytes = shl i64 %rows, 2
  %is.first = icmp eq i64 %column, %column.first
  %each = select i1 %is.first, i64 %line.bytes, i64 0"""
    if sides.y_transposed:
        # In one piece, where a block has all inputs.
        return f"""
  %fetched.lines = mul i64 %tile.number, %steps
  %fetched = mul i64 %fetched.lines, {_LINE}
  %next.first = mul i64 %column.end, %inputs
  %ahead.first = add i64 %next.first, %fetched
  %ahead = getelementptr float, ptr %y, i64 %ahead.first
  %block.floats = mul i64 %steps, %wide
  %is.needed = icmp ult i64 %fetched, %block.floats
  %is.whole = icmp eq i64 %steps, %inputs
  %is.fetched = and i1 %is.needed, %is.whole
  %each = select i1 %is.fetched, i64 {4 * _LINE}, i64 0"""
    # A step of one input, a tile of one line of the cache: in the next block, or the next piece.
    return f"""
  %fetched = mul i64 %tile.number, {_LINE}
  %next.input = select i1 %is.last, i64 0, i64 %input.end
  %next.column = select i1 %is.last, i64 %column.end, i64 %column.first
  %next.lines = mul i64 %next.input, %columns
  %next.first = add i64 %next.lines, %next.column
  %ahead.first = add i64 %next.first, %fetched
  %ahead = getelementptr float, ptr %y, i64 %ahead.first
  %line.bytes = shl i64 %columns, 2
  %is.needed = icmp ult i64 %fetched, %wide
  %each = select i1 %is.needed, i64 %line.bytes, i64 0"""


def _tile(rows: int, lanes: int, x_transposed: bool) -> str:
    """The function `@tile.ROWS` of x from its first row and input on, the floats from one of its lines to the
    next, a panel, where the sums go, two sizes, and whether they are added to what is there; and of the bytes
    that are fetched into the cache meanwhile the first, and how many for each step.
    """
    cells = [(row, part) for row in range(rows) for part in range(VECTORS)]
    vector = f"<{lanes} x float>"
    places = [
        f"""
  %behind.{r}.{p} = mul i64 %outputs, {r}
  %column.{r}.{p} = add i64 %behind.{r}.{p}, {p * lanes}
  %out.at.{r}.{p} = getelementptr float, ptr %out, i64 %column.{r}.{p}
  call void @llvm.prefetch.p0(ptr %out.at.{r}.{p}, i32 1, i32 3, i32 1)"""
        for r, p in cells
    ]
    carried = [f"  %sum.{r}.{p} = phi {vector} [ zeroinitializer, %entry ], [ %more.{r}.{p}, %along ]"
               for r, p in cells]  # fmt: skip
    weights = [
        f"""
  %weights.at.{part} = getelementptr {vector}, ptr %row.at, i64 {part}
  %weights.{part} = load {vector}, ptr %weights.at.{part}, align {4 * lanes}"""
        for part in range(VECTORS)
    ]
    inputs = [
        f"""
{f"  %x.index.{row} = add i64 %x.line, {row}" if x_transposed else _along(row)}
  %x.at.{row} = getelementptr float, ptr %x, i64 %x.index.{row}
  %x.value.{row} = load float, ptr %x.at.{row}, align 4
  %x.first.{row} = insertelement {vector} poison, float %x.value.{row}, i32 0
  %x.{row} = shufflevector {vector} %x.first.{row}, {vector} poison, <{lanes} x i32> zeroinitializer"""
        for row in range(rows)
    ]
    products = [
        "  " + plus_product(f"%more.{r}.{p}", f"%x.{r}", f"%weights.{p}", f"%sum.{r}.{p}", lanes)
        for r, p in cells
    ]
    added = [
        f"""
  %before.{r}.{p} = load {vector}, ptr %out.at.{r}.{p}, align 4
  %all.{r}.{p} = fadd {vector} %before.{r}.{p}, %more.{r}.{p}
  store {vector} %all.{r}.{p}, ptr %out.at.{r}.{p}, align 4"""
        for r, p in cells
    ]
    stored = [f"  store {vector} %more.{r}.{p}, ptr %out.at.{r}.{p}, align 4" for r, p in cells]
    return f"""
define void @tile.{rows}(ptr noalias %x, i64 %stride, ptr noalias %panel, ptr noalias %out, i64 %steps,
                         i64 %outputs, i1 %adds, ptr %ahead, i64 %each) {{
entry:
{_lines(places)}
  br label %along

along:
  %step = phi i64 [ 0, %entry ], [ %step.next, %along ]
{_lines(carried)}
  %panel.first = mul i64 %step, {VECTORS * lanes}
  %row.at = getelementptr float, ptr %panel, i64 %panel.first
  %fetched = mul i64 %step, %each
  %ahead.at = getelementptr i8, ptr %ahead, i64 %fetched
  call void @llvm.prefetch.p0(ptr %ahead.at, i32 0, i32 2, i32 1)
{_lines(weights)}
  %x.line = mul i64 %step, %stride
{_lines(inputs)}
{_lines(products)}
  %step.next = add i64 %step, 1
  %is.more = icmp ult i64 %step.next, %steps
  br i1 %is.more, label %along, label %end

end:
  br i1 %adds, label %add, label %store

add:
{_lines(added)}
  ret void

store:
{_lines(stored)}
  ret void
}}"""


def _along(row: int) -> str:
    return f"""
  %skipped.{row} = mul i64 %stride, {row}
  %x.index.{row} = add i64 %skipped.{row}, %step"""


def _copy(lanes: int) -> str:
    """The function `@copy` of y from its first element on, the floats from one of its lines to the next, and
    how many inputs and columns become panels, and where they go.
    """
    vector, width = f"<{lanes} x float>", VECTORS * lanes
    moved = [
        f"""
  %part.{part} = getelementptr {vector}, ptr %from, i64 {part}
  %value.{part} = load {vector}, ptr %part.{part}, align 4
  %to.{part} = getelementptr {vector}, ptr %to, i64 {part}
  store {vector} %value.{part}, ptr %to.{part}, align {4 * lanes}"""
        for part in range(VECTORS)
    ]
    return f"""
define void @copy(ptr noalias %y, i64 %stride, i64 %steps, i64 %wide, ptr noalias %panels) {{
entry:
  %panel.floats = mul i64 %steps, {width}
  br label %line

line:
  %step = phi i64 [ 0, %entry ], [ %step.next, %line.done ]
  %line.first = mul i64 %step, %stride
  %line.at = getelementptr float, ptr %y, i64 %line.first
  %to.first = mul i64 %step, {width}
  %to.line = getelementptr float, ptr %panels, i64 %to.first
  br label %panel

panel:
  %column = phi i64 [ 0, %line ], [ %column.next, %panel ]
  %to = phi ptr [ %to.line, %line ], [ %to.next, %panel ]
  %from = getelementptr float, ptr %line.at, i64 %column
{_lines(moved)}
  %to.next = getelementptr float, ptr %to, i64 %panel.floats
  %column.next = add i64 %column, {width}
  %panels.more = icmp ult i64 %column.next, %wide
  br i1 %panels.more, label %panel, label %line.done

line.done:
  %step.next = add i64 %step, 1
  %lines.more = icmp ult i64 %step.next, %steps
  br i1 %lines.more, label %line, label %end

end:
  ret void
}}"""


def _copy_transposed(lanes: int) -> str:
    """`@copy` of a y whose lines are columns: as many of them as a vector has lanes are turned at once."""
    vector, width = f"<{lanes} x float>", VECTORS * lanes
    loads = [
        f"""
  %line.{lane} = mul i64 %stride, {lane}
  %from.{lane} = getelementptr float, ptr %from, i64 %line.{lane}
  %value.{lane} = load {vector}, ptr %from.{lane}, align 4"""
        for lane in range(lanes)
    ]
    turns, turned = _turned([f"%value.{lane}" for lane in range(lanes)])
    stores = [
        f"""
  %to.{lane} = getelementptr float, ptr %to, i64 {width * lane}
  store {vector} {name}, ptr %to.{lane}, align {4 * lanes}"""
        for lane, name in enumerate(turned)
    ]
    return f"""
define void @copy(ptr noalias %y, i64 %stride, i64 %steps, i64 %wide, ptr noalias %panels) {{
entry:
  br label %columns

columns:
  %column = phi i64 [ 0, %entry ], [ %column.next, %columns.done ]
  %lines = mul i64 %column, %stride
  %line.at = getelementptr float, ptr %y, i64 %lines
  %place = urem i64 %column, {width}
  %before = sub i64 %column, %place
  %panel.first = mul i64 %before, %steps
  %to.first = add i64 %panel.first, %place
  %to.columns = getelementptr float, ptr %panels, i64 %to.first
  br label %steps.block

steps.block:
  %step = phi i64 [ 0, %columns ], [ %step.next, %steps.block ]
  %from = getelementptr float, ptr %line.at, i64 %step
  %step.first = mul i64 %step, {width}
  %to = getelementptr float, ptr %to.columns, i64 %step.first
{_lines(loads)}
{_lines(turns)}
{_lines(stores)}
  %step.next = add i64 %step, {lanes}
  %steps.more = icmp ult i64 %step.next, %steps
  br i1 %steps.more, label %steps.block, label %columns.done

columns.done:
  %column.next = add i64 %column, {lanes}
  %columns.more = icmp ult i64 %column.next, %wide
  br i1 %columns.more, label %columns, label %end

end:
  ret void
}}"""


def _turned(names: list[str]) -> tuple[list[str], list[str]]:
    """What turns as many vectors as they have lanes into those of each lane, and their names.

    In each round two vectors exchange halves, then quarters, and so on, of a smallest square upwards.
    """
    lanes, text = len(names), []
    vector = f"<{lanes} x float>"
    size = 1
    while size < lanes:
        turned = list(names)
        for first in (n for n in range(lanes) if not n & size):
            second = first | size
            upper = [lane if not lane & size else lanes + (lane ^ size) for lane in range(lanes)]
            lower = [lane | size if not lane & size else lanes + lane for lane in range(lanes)]
            for place, mask in ((first, upper), (second, lower)):
                turned[place] = f"%turned.{size}.{place}"
                chosen = ", ".join(f"i32 {lane}" for lane in mask)
                text.append(
                    f"  {turned[place]} = shufflevector {vector} {names[first]}, {vector} {names[second]}, "
                    f"<{lanes} x i32> <{chosen}>"
                )
        names, size = turned, 2 * size
    return text, names


def _declarations(lanes: int) -> str:
    vector = f"<{lanes} x float>"
    return f"""
declare {vector} @llvm.fmuladd.v{lanes}f32({vector}, {vector}, {vector})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"""


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)
