"""LLVM's text of an exponential of vectors."""

from __future__ import annotations

import math

from ragjax.kernels.vectors_text import all_lanes, constant, plus_product

_LN_2_HIGH = 0.693359375
"""Of few bits, so that a whole number times it is exact."""
_NORMAL = -87.0
"""Its exponential is about the smallest normal number of float32."""


def exponential(lanes: int) -> str:
    """`%exp` of `%below`, none of it above 0: a power of two times Taylor's polynomial of what is left.

    That is under ln 2 / 2, so that what follows the seventh power is under 6e-9 of the result. Below the
    smallest normal number it is 0; of what is not a number it is that.
    """
    vector, integers = f"<{lanes} x float>", f"<{lanes} x i32>"

    def everywhere(value: float) -> str:
        return all_lanes(constant(value), lanes)

    def sum_of(to: str, x: str, y: str, total: str) -> str:
        return f"  {plus_product(to, x, y, total, lanes)}"

    powers = [
        sum_of(f"%power.{k}", f"%power.{k + 1}", "%rest", everywhere(1 / math.factorial(k)))
        for k in range(6, -1, -1)
    ]
    first = f"  %power.7 = fadd {vector} zeroinitializer, {everywhere(1 / math.factorial(7))}"
    return "\n".join([
        f"  %is.normal = fcmp oge {vector} %below, {everywhere(_NORMAL)}",
        f"  %near = select <{lanes} x i1> %is.normal, {vector} %below, {vector} {everywhere(_NORMAL)}",
        f"  %twos.exact = fmul {vector} %near, {everywhere(math.log2(math.e))}",
        f"  %twos = call {vector} @llvm.rint.v{lanes}f32({vector} %twos.exact)",
        sum_of("%rest.high", "%twos", everywhere(-_LN_2_HIGH), "%near"),
        sum_of("%rest", "%twos", everywhere(_LN_2_HIGH - math.log(2)), "%rest.high"),
        first, *powers,
        f"  %twos.integer = fptosi {vector} %twos to {integers}",
        f"  %exponent.integer = add {integers} %twos.integer, {all_lanes('127', lanes, 'i32')}",
        f"  %exponent.bits = shl {integers} %exponent.integer, {all_lanes('23', lanes, 'i32')}",
        f"  %two.to = bitcast {integers} %exponent.bits to {vector}",
        f"  %exp.near = fmul {vector} %power.0, %two.to",
        f"  %is.nan = fcmp uno {vector} %below, %below",
        f"  %exp.far = select <{lanes} x i1> %is.nan, {vector} %below, {vector} zeroinitializer",
        f"  %exp = select <{lanes} x i1> %is.normal, {vector} %exp.near, {vector} %exp.far",
    ])  # fmt: skip


def exponential_function(lanes: int) -> str:
    """The function `@exponential` of a vector that is nowhere above 0, but for rounding."""
    vector = f"<{lanes} x float>"
    return f"""
define {vector} @exponential({vector} %below) alwaysinline {{
{exponential(lanes)}
  ret {vector} %exp
}}

declare {vector} @llvm.rint.v{lanes}f32({vector})"""
