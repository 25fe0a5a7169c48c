"""LLVM's text of activations, which a product applies to its outputs while they are in registers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from ragjax.kernels.vectors_text import all_lanes, constant, lines, plus_product

_MAGIC = 1.5 * 2**23
"""Added to a number that is not large, it leaves a whole one in the lowest bits."""
_POWER: list[float] = (
    Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(kind=Polynomial).coef.tolist()
)
"""Of a polynomial within 3e-9 of 2^f for f of 1/2 at most."""


def gelu_tanh(lanes: int) -> str:
    """`@activate`: x (1 + tanh(v / 2)) / 2 = x / (1 + exp(-v)), where v = 2 sqrt(2 / pi) (x + 0.044715 x^3).

    exp(-v) is the power of two of a number of which the nearest whole one becomes an exponent's bits: all of
    them 0 for large v, and those of infinity for small ones.
    """
    vector, integers = f"<{lanes} x float>", f"<{lanes} x i32>"
    once = -2 * math.sqrt(2 / math.pi) * math.log2(math.e)

    def everywhere(value: float) -> str:
        return all_lanes(constant(value), lanes)

    *others, highest = _POWER
    powers = [f"  %power.{len(others)} = fadd {vector} zeroinitializer, {everywhere(highest)}"]
    for k in range(len(others) - 1, -1, -1):
        powers.append(
            f"  {plus_product(f'%power.{k}', f'%power.{k + 1}', '%part', everywhere(others[k]), lanes)}"
        )
    return f"""
define {vector} @activate({vector} %x) alwaysinline {{
  %square = fmul {vector} %x, %x
  {plus_product("%factor", "%square", everywhere(0.044715 * once), everywhere(once), lanes)}
  %twos = fmul {vector} %x, %factor
  %is.below = fcmp olt {vector} %twos, {everywhere(128)}
  %low = select <{lanes} x i1> %is.below, {vector} %twos, {vector} {everywhere(128)}
  %is.above = fcmp ogt {vector} %low, {everywhere(-127)}
  %near = select <{lanes} x i1> %is.above, {vector} %low, {vector} {everywhere(-127)}
  %shifted = fadd {vector} %near, {everywhere(_MAGIC + 127)}
  %whole = fsub {vector} %shifted, {everywhere(_MAGIC + 127)}
  %part = fsub {vector} %near, %whole
{lines(powers)}
  %shifted.bits = bitcast {vector} %shifted to {integers}
  %exponent.bits = shl {integers} %shifted.bits, {all_lanes("23", lanes, "i32")}
  %two.to = bitcast {integers} %exponent.bits to {vector}
  {plus_product("%all", "%power.0", "%two.to", everywhere(1), lanes)}
  %active = fdiv {vector} %x, %all
  ret {vector} %active
}}

declare {vector} @llvm.fmuladd.v{lanes}f32({vector}, {vector}, {vector})"""


def relu(lanes: int) -> str:
    """`@activate`: x, or 0 where it is less."""
    vector = f"<{lanes} x float>"
    return f"""
define {vector} @activate({vector} %x) alwaysinline {{
  %is.below = fcmp olt {vector} %x, zeroinitializer
  %active = select <{lanes} x i1> %is.below, {vector} zeroinitializer, {vector} %x
  ret {vector} %active
}}"""


def linear(lanes: int) -> str:
    """`@activate`: x."""
    vector = f"<{lanes} x float>"
    return f"""
define {vector} @activate({vector} %x) alwaysinline {{
  ret {vector} %x
}}"""


Activate = Callable[[int], str]
"""From how many lanes a vector has to the text of the function `@activate` of one."""
ACTIVATIONS: dict[str, Activate] = {
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "linear": linear,
    "relu": relu,
}
"""By the names of those of `ragjax.models.activations.ACTIVATIONS` that there are here."""
