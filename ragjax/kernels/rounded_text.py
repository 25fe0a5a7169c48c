"""LLVM's text of a few rounded rows times a matrix in quads: `rounded.ll`, and the loops it calls."""

from __future__ import annotations

import math
from pathlib import Path
from string import Template
from typing import Literal

from ragjax.kernels.activations_text import Activate
from ragjax.kernels.factors import INTEGERS
from ragjax.kernels.norm import norm_row
from ragjax.kernels.tiles import VECTORS, tiles
from ragjax.kernels.vectors_text import LINE, all_lanes, constant

_LANES = 16
"""The instruction's."""
_TILE = 8
"""Rows of integers whose sums stay in half of the registers."""
_NEAR = 1 << 14
"""Bytes ahead of what is read that one tile alone fetches."""
_SHIFT = 1.5 * 2**23
_SHIFT_BITS = 0x4B400000
"""As the bits of a float32."""


def rounded_text(bits: Literal[8, 16], activate: Activate | None, norm: str | None, *, adds: bool) -> str:
    """A kernel that rounds and multiplies.

    Args:
      bits: of the integers that inputs become; those of 16 are two rows of 8, the upper ones first.
      activate: what becomes of the product and a bias; none: the product is not changed.
      norm: kind of the rows' norm that is multiplied, as `norm_row` has it; none: the rows themselves.
      adds: whether what becomes of them is added to something.
    """
    halves, width = bits // 8, VECTORS * _LANES
    pointers, functions = tiles(_TILE, INTEGERS, _LANES)
    product = Template(Path(__file__).with_name("rounded.ll").read_text()).substitute(
        tile_count=_TILE + 1,
        tiles=pointers,
        row_bytes=4 * halves, step_bytes=4 * width, width_bytes=4 * width, width=width,
        halves=halves, most=_TILE // halves, most_less_1=_TILE // halves - 1,
        near=_NEAR, line=LINE,
        aside=_TILE * width, found_row=halves * width,
        largest=constant(2 ** (bits - 1) - 1), infinity=constant(math.inf),
        unsigned=all_lanes(str(2**31 - 1), _LANES, "i32"),
        shift=all_lanes(constant(_SHIFT), _LANES),
        unshift=all_lanes(str(2 ** (bits - 1) - _SHIFT_BITS), _LANES, "i32"),
        store=_stored_halves() if halves == 2 else _stored(),
        # What begins with a semicolon is a comment.
        active="" if activate else "; ", adds="" if adds else "; ", normed="" if norm else "; ",
        norm_bytes=16 if norm else 0, row="%norm.row" if norm else "%x.row",
        norm_operands=_norm_operands(norm, 4 + bool(activate) + adds),
        columns="\n".join(_column(part, active=bool(activate)) for part in range(VECTORS)),
        combine="\n".join(
            _combined(part, halves, width, active=bool(activate), adds=adds) for part in range(VECTORS)
        ),
    )  # fmt: skip
    activation = activate(_LANES) if activate else ""
    normalization = norm_row(_LANES, norm) if norm else ""
    return "\n".join([product, functions, activation, normalization])


def _norm_operands(norm: str | None, first: int) -> str:
    """Stores where a norm's scale, epsilon and bias are, which are operands from number `first` on."""
    given = {None: 0, "rms": 2, "layer": 3}[norm]
    return "\n".join(
        f"""
  %norm.buffer.{which} = call ptr @argument(ptr %frame, i64 {first + which})
  %norm.data.{which} = call ptr @data(ptr %norm.buffer.{which})
  %norm.place.{which} = getelementptr %Call, ptr %call, i32 0, i32 {12 + which}
  store ptr %norm.data.{which}, ptr %norm.place.{which}"""
        for which in range(given)
    )


def _stored() -> str:
    return """
  %byte = trunc <16 x i32> %integer to <16 x i8>
  %byte.at = getelementptr i8, ptr %to, i64 %done
  store <16 x i8> %byte, ptr %byte.at, align 1"""


def _stored_halves() -> str:
    """The upper bits, and a row behind them the lower ones."""
    return f"""
  %upper.wide = lshr <16 x i32> %integer, {all_lanes("8", _LANES, "i32")}
  %upper = trunc <16 x i32> %upper.wide to <16 x i8>
  %upper.at = getelementptr i8, ptr %to, i64 %done
  store <16 x i8> %upper, ptr %upper.at, align 1
  %lower = trunc <16 x i32> %integer to <16 x i8>
  %lower.at = getelementptr i8, ptr %upper.at, i64 %inputs
  store <16 x i8> %lower, ptr %lower.at, align 1"""


def _column(part: int, *, active: bool) -> str:
    """Of a vector of outputs: what is taken off its sums, whose integers had no sign, the scales, and where
    there is an activation the bias."""
    bias = f"""
  %bias.at.{part} = getelementptr <16 x float>, ptr %bias.at, i64 {part}
  %bias.{part} = load <16 x float>, ptr %bias.at.{part}, align 4"""
    return f"""{bias if active else ""}
  %sums.at.{part} = getelementptr <16 x i32>, ptr %sums.at, i64 {part}
  %sums.{part} = load <16 x i32>, ptr %sums.at.{part}, align 4
  %off.{part} = shl <16 x i32> %sums.{part}, {all_lanes("7", _LANES, "i32")}
  %scale.at.{part} = getelementptr <16 x half>, ptr %scale.at, i64 {part}
  %scale.half.{part} = load <16 x half>, ptr %scale.at.{part}, align 2
  %scale.{part} = fpext <16 x half> %scale.half.{part} to <16 x float>"""


def _combined(part: int, halves: int, width: int, *, active: bool, adds: bool) -> str:
    """A vector of a row's outputs, of its integer sums; from those of lower bits nothing is taken off."""
    first = f"""
  %sum.at.{part} = getelementptr <16 x i32>, ptr %found.at, i64 {part}
  %sum.{part} = load <16 x i32>, ptr %sum.at.{part}, align 64
  %signed.{part} = sub <16 x i32> %sum.{part}, %off.{part}
  %float.{part} = sitofp <16 x i32> %signed.{part} to <16 x float>"""
    # Not in integers: 256 times the upper sum may be more than 32 bits hold.
    second = f"""
  %low.at.{part} = getelementptr i32, ptr %sum.at.{part}, i64 {width}
  %low.{part} = load <16 x i32>, ptr %low.at.{part}, align 64
  %low.float.{part} = sitofp <16 x i32> %low.{part} to <16 x float>
  %high.{part} = fmul <16 x float> %float.{part}, {all_lanes(constant(256), _LANES)}
  %both.{part} = fadd <16 x float> %high.{part}, %low.float.{part}"""
    activated = f"""
  %biased.{part} = fadd <16 x float> %made.{part}, %bias.{part}
  %active.{part} = call <16 x float> @activate(<16 x float> %biased.{part})"""
    added = f"""
  %added.at.{part} = getelementptr <16 x float>, ptr %add, i64 {part}
  %added.{part} = load <16 x float>, ptr %added.at.{part}, align 4
  %summed.{part} = fadd <16 x float> %added.{part}, %active.{part}"""
    whole = "both" if halves == 2 else "float"
    made = "summed" if adds else "active" if active else "made"
    ends = (activated if active else "") + (added if adds else "")
    return f"""{first}{second if halves == 2 else ""}
  %stepped.{part} = fmul <16 x float> %{whole}.{part}, %unit.all
  %made.{part} = fmul <16 x float> %stepped.{part}, %scale.{part}{ends}
  %put.at.{part} = getelementptr <16 x float>, ptr %put, i64 {part}
  store <16 x float> %{made}.{part}, ptr %put.at.{part}, align 4"""
