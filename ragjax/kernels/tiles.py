"""LLVM's text of a few rows times a panel: the sums stay in registers while inputs go by, each read once."""

from __future__ import annotations

from collections.abc import Sequence

from ragjax.kernels.factors import INTEGERS, SMALL_WEIGHTS, Factors
from ragjax.kernels.vectors_text import LINE, all_lanes, lines

VECTORS = 2
"""Of a panel, side by side."""
Cells = Sequence[tuple[int, int]]
"""Row and vector of each sum."""


def tile(rows: int, factors: Factors, lanes: int) -> str:
    """The function `@tile.ROWS` of x from its first row on, a panel, where the sums go, and two sizes; and of
    the bytes that are fetched into the cache meanwhile the first, and how many for each step.

    Args:
      rows: how many it multiplies.
      factors: what with what.
      lanes: values in a vector.
    """
    cells = [(row, part) for row in range(rows) for part in range(VECTORS)]
    sums = f"<{lanes} x {factors.out}>"
    carried = [
        f"  %sum.{r}.{p} = phi {sums} [ zeroinitializer, %entry ], [ %more.{r}.{p}, %stepped ]"
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
    own_x = [
        f"""
  %skipped.{row} = mul i64 %steps, {row}
  %x.index.{row} = add i64 %skipped.{row}, %step
  %x.at.{row} = getelementptr {factors.x}, ptr %x, i64 %x.index.{row}"""
        for row in range(rows)
    ]
    step = _group_by_group if factors.half else _input_by_input
    fetches = [
        f"""
  %line.at.{line} = getelementptr i8, ptr %ahead.at, i64 {line * LINE}
  call void @llvm.prefetch.p0(ptr %line.at.{line}, i32 0, i32 2, i32 1)"""
        for line in range(max(1, step_bytes(factors, lanes) // LINE))
    ]
    return f"""
define void @tile.{rows}(ptr noalias %x, ptr noalias %panel, ptr noalias %out, i64 %steps, i64 %outputs,
                         ptr %ahead, i64 %each) {{
entry:
  br label %along

along:
  %step = phi i64 [ 0, %entry ], [ %step.next, %stepped ]
{lines(carried)}
  %first = mul i64 %step, {factors.per_output * VECTORS * lanes}
  %row.at = getelementptr {factors.weights}, ptr %panel, i64 %first
  %fetched = mul i64 %step, %each
  %ahead.at = getelementptr i8, ptr %ahead, i64 %fetched
{lines(fetches)}
{lines(own_x)}
{step(rows, cells, factors, lanes)}
  %step.next = add i64 %step, 1
  %is.more = icmp ult i64 %step.next, %steps
  br i1 %is.more, label %along, label %end

end:
{lines(stores)}
  ret void
}}"""


_READ_OF_PANELS = """
; What `@reads` tells of a matrix: its first panel, bytes of a panel, and how many hold so many outputs.
define { ptr, i64, i64 } @read.of.panels(ptr %first, i64 %bytes, i64 %outputs, i64 %width) alwaysinline {
  %far = add i64 %outputs, %width
  %above = sub i64 %far, 1
  %panels = udiv i64 %above, %width
  %read.0 = insertvalue { ptr, i64, i64 } zeroinitializer, ptr %first, 0
  %read.1 = insertvalue { ptr, i64, i64 } %read.0, i64 %bytes, 1
  %read = insertvalue { ptr, i64, i64 } %read.1, i64 %panels, 2
  ret { ptr, i64, i64 } %read
}"""


def tiles(most: int, factors: Factors, lanes: int) -> tuple[str, str]:
    """Up to so many rows: pointers to their functions, by how many they are, and the functions.

    Args:
      most: rows of the largest.
      factors: what with what.
      lanes: values in a vector.
    """
    rows = range(1, most + 1)
    pointers = ", ".join(["ptr null", *(f"ptr @tile.{each}" for each in rows)])
    functions = (tile(each, factors, lanes) for each in rows)
    return pointers, lines([declaration(factors, lanes), _READ_OF_PANELS, *functions])


def declaration(factors: Factors, lanes: int) -> str:
    """Of the functions that tiles call: to add a product to a sum, and to fetch."""
    vector = f"<{lanes} x {factors.out}>"
    return f"""
declare {vector} @{_adds(factors, lanes)}({vector}, {vector}, {vector})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"""


def step_bytes(factors: Factors, lanes: int) -> int:
    """Bytes of a panel that a step reads."""
    return factors.per_output * VECTORS * lanes * (4 if factors.weights == "float" else 1)


def _input_by_input(rows: int, cells: Cells, factors: Factors, lanes: int) -> str:
    """A step that adds one product to each sum."""
    return f"""
{lines(_weights(part, factors, lanes) for part in range(VECTORS))}
{lines(_everywhere("x", f"x.at.{row}", row, factors.out, lanes) for row in range(rows))}
  br label %stepped

stepped:
{lines(_add(f"more.{r}.{p}", f"x.{r}", f"weights.{p}", f"sum.{r}.{p}", factors, lanes) for r, p in cells)}"""


def _weights(part: int, factors: Factors, lanes: int) -> str:
    """A vector of the panel, in `%weights`, of the type of the sums."""
    stored = f"<{lanes * factors.per_output} x {factors.weights}>"
    at = f"  %weights.at.{part} = getelementptr {stored}, ptr %row.at, i64 {part}"
    if factors == SMALL_WEIGHTS:
        return f"""{at}
  %small.{part} = load {stored}, ptr %weights.at.{part}, align 1
  %weights.{part} = sitofp {stored} %small.{part} to <{lanes} x float>"""
    return f"""{at}
  %weights.{part} = load <{lanes} x {factors.out}>, ptr %weights.at.{part}, align 4"""


def _group_by_group(rows: int, cells: Cells, factors: Factors, lanes: int) -> str:
    """A step that adds up the products of a group, and its scale times them to each sum."""
    vector, width = f"<{lanes} x float>", VECTORS * lanes
    carried = [
        f"  %part.{r}.{p} = phi {vector} [ zeroinitializer, %along ], [ %both.{r}.{p}, %within ]"
        for r, p in cells
    ]
    places = [
        f"""
  %low.at.{row} = getelementptr float, ptr %x.at.{row}, i64 %byte
  %high.at.{row} = getelementptr float, ptr %low.at.{row}, i64 {factors.half}
{_everywhere("x.low", f"low.at.{row}", row, "float", lanes)}
{_everywhere("x.high", f"high.at.{row}", row, "float", lanes)}"""
        for row in range(rows)
    ]
    products = [
        _add(f"lower.{r}.{p}", f"x.low.{r}", f"low.{p}", f"part.{r}.{p}", factors, lanes)
        + "\n"
        + _add(f"both.{r}.{p}", f"x.high.{r}", f"high.{p}", f"lower.{r}.{p}", factors, lanes)
        for r, p in cells
    ]
    scales = [
        f"""
  %scale.at.{p} = getelementptr i8, ptr %row.at, i64 {factors.half * width + 2 * p * lanes}
  %scale.half.{p} = load <{lanes} x half>, ptr %scale.at.{p}, align 2
  %scale.{p} = fpext <{lanes} x half> %scale.half.{p} to {vector}"""
        for p in range(VECTORS)
    ]
    sums = [
        _add(f"more.{r}.{p}", f"both.{r}.{p}", f"scale.{p}", f"sum.{r}.{p}", factors, lanes) for r, p in cells
    ]
    return f"""
  br label %within

within:
  %byte = phi i64 [ 0, %along ], [ %byte.next, %within ]
{lines(carried)}
  %bytes.first = mul i64 %byte, {width}
  %bytes.at = getelementptr i8, ptr %row.at, i64 %bytes.first
{lines(_halves(part, lanes) for part in range(VECTORS))}
{lines(places)}
{lines(products)}
  %byte.next = add i64 %byte, 1
  %is.within = icmp ult i64 %byte.next, {factors.half}
  br i1 %is.within, label %within, label %stepped

stepped:
{lines(scales)}
{lines(sums)}"""


def _halves(part: int, lanes: int) -> str:
    """The lower and the upper four bits of a vector of bytes, with their signs, as floats."""
    integers, floats = f"<{lanes} x i32>", f"<{lanes} x float>"
    return f"""
  %bytes.at.{part} = getelementptr <{lanes} x i8>, ptr %bytes.at, i64 {part}
  %bytes.{part} = load <{lanes} x i8>, ptr %bytes.at.{part}, align 1
  %wide.{part} = sext <{lanes} x i8> %bytes.{part} to {integers}
  %up.{part} = shl {integers} %wide.{part}, {all_lanes("28", lanes, "i32")}
  %low.integer.{part} = ashr {integers} %up.{part}, {all_lanes("28", lanes, "i32")}
  %high.integer.{part} = ashr {integers} %wide.{part}, {all_lanes("4", lanes, "i32")}
  %low.{part} = sitofp {integers} %low.integer.{part} to {floats}
  %high.{part} = sitofp {integers} %high.integer.{part} to {floats}"""


def _everywhere(name: str, at: str, row: int, scalar: str, lanes: int) -> str:
    """What stands at a place, in all lanes of `%NAME.ROW`."""
    vector, first = f"<{lanes} x {scalar}>", f"%{name}.first.{row}"
    return f"""
  %{name}.value.{row} = load {scalar}, ptr %{at}, align 4
  {first} = insertelement {vector} poison, {scalar} %{name}.value.{row}, i32 0
  %{name}.{row} = shufflevector {vector} {first}, {vector} poison, <{lanes} x i32> zeroinitializer"""


def _add(to: str, x: str, weights: str, total: str, factors: Factors, lanes: int) -> str:
    """A sum with one product more."""
    vector = f"<{lanes} x {factors.out}>"
    given = (total, x, weights) if factors == INTEGERS else (x, weights, total)
    listed = ", ".join(f"{vector} %{name}" for name in given)
    return f"  %{to} = call {vector} @{_adds(factors, lanes)}({listed})"


def _adds(factors: Factors, lanes: int) -> str:
    return "llvm.x86.avx512.vpdpbusd.512" if factors == INTEGERS else f"llvm.fmuladd.v{lanes}f32"
