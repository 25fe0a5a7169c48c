"""LLVM's text of activations, which a product applies to its outputs while they are in registers."""

from __future__ import annotations

import math
from collections.abc import Callable

from ragjax.kernels.exponential import exponential_function
from ragjax.kernels.vectors_text import all_lanes, constant, plus_product


def gelu_tanh(lanes: int) -> str:
    """`@activate`: x (1 + tanh(v / 2)) / 2 = x * sigmoid(v), where v = 2 sqrt(2 / pi) (x + 0.044715 x^3)."""
    vector, once = f"<{lanes} x float>", 2 * math.sqrt(2 / math.pi)

    def everywhere(value: float) -> str:
        return all_lanes(constant(value), lanes)

    return f"""{exponential_function(lanes)}
define {vector} @activate({vector} %x) alwaysinline {{
  %square = fmul {vector} %x, %x
  {plus_product("%factor", "%square", everywhere(0.044715 * once), everywhere(once), lanes)}
  %v = fmul {vector} %x, %factor
  %size = call {vector} @llvm.fabs.v{lanes}f32({vector} %v)
  %below = fneg {vector} %size
  %exp = call {vector} @exponential({vector} %below)
  %all = fadd {vector} %exp, {everywhere(1)}
  %is.above = fcmp oge {vector} %v, zeroinitializer
  %part = select <{lanes} x i1> %is.above, {vector} {everywhere(1)}, {vector} %exp
  %over = fmul {vector} %x, %part
  %active = fdiv {vector} %over, %all
  ret {vector} %active
}}

declare {vector} @llvm.fabs.v{lanes}f32({vector})
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
