"""LLVM's text of what products by blocks are made of: what copies a factor into panels, and what multiplies
rows with them.
"""

from __future__ import annotations

from ragjax.kernels.machine import Vectors
from ragjax.kernels.tiles import VECTORS
from ragjax.kernels.vectors_text import lines, plus_product


def tile_rows(vectors: Vectors) -> int:
    """As many rows as there is room in the registers for their sums, in half of them."""
    return vectors.registers // (2 * VECTORS)


def block_tiles(name: str, most: int, lanes: int, *, x_transposed: bool) -> str:
    """Pointers `@NAME` to functions by how many rows are left, how many of them each takes in `@NAME.rows`,
    and the functions, which take a power of two of rows.

    A function is given x from its first row and input on, the floats from one of its lines to the next, a
    panel, where the sums go, two sizes, and whether they are added to what is there; and of the bytes that
    are fetched into the cache meanwhile the first, and how many for each step.

    Args:
      name: begins the functions' names too.
      most: rows of the largest, a power of two.
      lanes: values in a vector.
      x_transposed: whether the rows stand side by side.
    """
    sizes = [1 << (left.bit_length() - 1) for left in range(1, most + 1)]
    pointers = ", ".join(["ptr null", *(f"ptr @{name}.{size}" for size in sizes)])
    taken = ", ".join(["i64 0", *(f"i64 {size}" for size in sizes)])
    made = [
        f"@{name} = private constant [{most + 1} x ptr] [ {pointers} ]",
        f"@{name}.rows = private constant [{most + 1} x i64] [ {taken} ]",
    ]
    return lines([*made, *(_tile(f"{name}.{size}", size, lanes, x_transposed) for size in sorted({*sizes}))])


def rows_taken(tiles: str, most: int) -> str:
    """What finds `%tile` for `%rows.left` rows, and `%these`, which it takes."""
    return f"""
  %few = call i64 @llvm.umin.i64(i64 %rows.left, i64 {most})
  %these.at = getelementptr i64, ptr @{tiles}.rows, i64 %few
  %these = load i64, ptr %these.at
  %tile.at = getelementptr ptr, ptr @{tiles}, i64 %few
  %tile = load ptr, ptr %tile.at"""


def multiply_rows(name: str, tiles: str, most: int, lanes: int, *, x_transposed: bool) -> str:
    """The function `@NAME` of x from its first row and input on, the floats from one of its lines to the
    next, panels and how many inputs they have, where the sums go and the floats from one row of them to the
    next, how many rows and columns there are, and whether the sums are added to what is there.

    Args:
      name: of the function.
      tiles: as `block_tiles` was given it.
      most: rows of the largest tile.
      lanes: values in a vector.
      x_transposed: whether the rows of x stand side by side.
    """
    return f"""
define void @{name}(ptr %x, i64 %stride, ptr %panels, i64 %steps, ptr %out, i64 %out.stride, i64 %rows,
                    i64 %wide, i1 %adds) {{
entry:
  br label %some.rows

some.rows:
  %row = phi i64 [ 0, %entry ], [ %row.next, %some.done ]
  %rows.left = sub i64 %rows, %row
{rows_taken(tiles, most)}
  %row.next = add i64 %row, %these
  %x.first = mul i64 %row, {"1" if x_transposed else "%stride"}
  %x.here = getelementptr float, ptr %x, i64 %x.first
  %out.first = mul i64 %row, %out.stride
  %out.row = getelementptr float, ptr %out, i64 %out.first
  br label %panel

panel:
  %column = phi i64 [ 0, %some.rows ], [ %column.next, %panel ]
  %panel.first = mul i64 %column, %steps
  %panel.at = getelementptr float, ptr %panels, i64 %panel.first
  %out.at = getelementptr float, ptr %out.row, i64 %column
  call void %tile(ptr %x.here, i64 %stride, ptr %panel.at, ptr %out.at, i64 %steps, i64 %out.stride, i1 %adds,
                  ptr %x.here, i64 0)
  %column.next = add i64 %column, {VECTORS * lanes}
  %panels.more = icmp ult i64 %column.next, %wide
  br i1 %panels.more, label %panel, label %some.done

some.done:
  %rows.more = icmp ult i64 %row.next, %rows
  br i1 %rows.more, label %some.rows, label %end

end:
  ret void
}}"""


def _tile(name: str, rows: int, lanes: int, x_transposed: bool) -> str:
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
define void @{name}(ptr noalias %x, i64 %stride, ptr noalias %panel, ptr noalias %out, i64 %steps,
                     i64 %outputs, i1 %adds, ptr %ahead, i64 %each) {{
entry:
{lines(places)}
  br label %along

along:
  %step = phi i64 [ 0, %entry ], [ %step.next, %along ]
{lines(carried)}
  %panel.first = mul i64 %step, {VECTORS * lanes}
  %row.at = getelementptr float, ptr %panel, i64 %panel.first
  %fetched = mul i64 %step, %each
  %ahead.at = getelementptr i8, ptr %ahead, i64 %fetched
  call void @llvm.prefetch.p0(ptr %ahead.at, i32 0, i32 2, i32 1)
{lines(weights)}
  %x.line = mul i64 %step, %stride
{lines(inputs)}
{lines(products)}
  %step.next = add i64 %step, 1
  %is.more = icmp ult i64 %step.next, %steps
  br i1 %is.more, label %along, label %end

end:
  br i1 %adds, label %add, label %store

add:
{lines(added)}
  ret void

store:
{lines(stored)}
  ret void
}}"""


def _along(row: int) -> str:
    return f"""
  %skipped.{row} = mul i64 %stride, {row}
  %x.index.{row} = add i64 %skipped.{row}, %step"""


def copy_lines(name: str, lanes: int) -> str:
    """The function `@NAME` of y from its first element on, the floats from one of its lines to the next, and
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
define void @{name}(ptr noalias %y, i64 %stride, i64 %steps, i64 %wide, ptr noalias %panels) {{
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
{lines(moved)}
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


def copy_columns(name: str, lanes: int) -> str:
    """`copy_lines` of a y whose lines are columns: as many as a vector has lanes are turned at once."""
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
define void @{name}(ptr noalias %y, i64 %stride, i64 %steps, i64 %wide, ptr noalias %panels) {{
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
{lines(loads)}
{lines(turns)}
{lines(stores)}
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


def block_declarations(lanes: int) -> str:
    """Of the functions that tiles call."""
    vector = f"<{lanes} x float>"
    return f"""
declare {vector} @llvm.fmuladd.v{lanes}f32({vector}, {vector}, {vector})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"""
