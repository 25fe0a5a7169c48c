"""LLVM's text of a product of large matrices: `blocks.ll`, and the loops it calls."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template
from typing import NamedTuple

from ragjax.kernels.block_parts import (
    block_declarations,
    block_tiles,
    copy_columns,
    copy_lines,
    rows_taken,
    tile_rows,
)
from ragjax.kernels.machine import Vectors
from ragjax.kernels.panels_text import panel_width

_ROOM = 49_152
"""Floats of y that are copied into panels at once: 192 KiB, which a core's own cache holds."""
_MOST_ROWS, _LEAST_ROWS = 1024, 64
"""Of a piece."""
_LINE = 16
"""Floats that a cache fetches at once."""


class Sides(NamedTuple):
    """How the factors of a product are given."""

    x_transposed: bool
    """Whether x is [in, rows]."""
    y_transposed: bool
    """Whether y is [out, in]."""
    adds: bool
    """Whether the product is added to what stands where it goes."""
    upper: bool
    """Whether nothing is to be made below the diagonal, beyond the columns that are taken together."""


def blocks_text(sides: Sides, vectors: Vectors) -> str:
    """A kernel that multiplies.

    Args:
      sides: how the factors are given.
      vectors: the processor's.
    """
    width, lanes = panel_width(vectors), vectors.lanes
    tile = tile_rows(vectors)
    # Of a transposed y all inputs of a column stand together: few columns, whose inputs are all needed.
    across = width * (2 if sides.y_transposed else 4)
    product = Template(Path(__file__).with_name("blocks.ll").read_text()).substitute(
        rows_taken=rows_taken("tile", tile), tile=tile, width=width, lanes=lanes,
        columns=across, deep=_ROOM // across, room=_ROOM,
        pieces_less_1=3 * (os.cpu_count() or 1) - 1, most_rows=_MOST_ROWS, least_rows=_LEAST_ROWS,
        adds="true" if sides.adds else "false", last_row="%column.end" if sides.upper else "%rows",
        inputs="@dimension(ptr %x.buffer, i64 0)" if sides.x_transposed
        else "@dimension.from.end(ptr %x.buffer, i64 1)",
        x_first=_first("x", "%input", "%row", "%rows") if sides.x_transposed
        else _first("x", "%row", "%input", "%inputs"),
        x_stride="%rows" if sides.x_transposed else "%inputs",
        y_first=_first("y", "%column.first", "%input", "%inputs") if sides.y_transposed
        else _first("y", "%input", "%column.first", "%columns"),
        y_stride="%inputs" if sides.y_transposed else "%columns",
        ahead=_ahead(sides, tile),
    )  # fmt: skip
    copy = (copy_columns if sides.y_transposed else copy_lines)("copy", lanes)
    tiles = block_tiles("tile", tile, lanes, x_transposed=sides.x_transposed)
    return "\n".join([product, copy, tiles, block_declarations(lanes)])


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
