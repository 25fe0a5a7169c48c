"""Products of few rows of floats with integers of 8 bits, for which the rows become integers as well.

In XLA, rounding the rows and scaling the sums are programs of their own before and behind each product, which
take as long for a small matrix as for a large one. Here the threads share the rounding, before it the rows'
norms, and each panel's sums become floats before they leave the cache.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, Int, Int8, Int32, Shaped

from ragjax.kernels.activations_text import ACTIVATIONS
from ragjax.kernels.calls import custom_call
from ragjax.kernels.machine import has_dot_product, kernels_serve, vectors
from ragjax.kernels.norm import RowNorm
from ragjax.kernels.panels import in_panels, out_of_panels
from ragjax.kernels.panels_text import panel_width
from ragjax.kernels.rounded_text import rounded_text

_AT_ONCE = 16
"""Inputs that are rounded together, of which there is a whole number."""
_MOST_INPUTS = (2**31 - 1) // (255 * 128)
"""Products of 8 bits with as many that 32 bits hold the sum of."""


def quads_serve() -> bool:
    """Whether the processor multiplies integers of 8 bits, and there is such a kernel."""
    return kernels_serve() and has_dot_product()


def rounding_serves(inputs: int) -> bool:
    """Whether there is such a product for so many inputs."""
    return quads_serve() and inputs <= _MOST_INPUTS


def activation_serves(name: str) -> bool:
    """Whether a product can end in this activation, by its name in a config."""
    return name in ACTIVATIONS


def norm_precedes(inputs: int) -> bool:
    """Whether such a product can be of the norms of rows so wide."""
    return inputs % _AT_ONCE == 0


def in_quads(kernel: Int8[Array, "in out"]) -> Int8[Array, "panels quads width 4"]:
    """A matrix in panels in which four inputs of an output stand together, filled up with zeros."""
    panels = in_panels(jnp.pad(kernel, ((0, -kernel.shape[0] % _AT_ONCE), (0, 0))))
    return panels.reshape(panels.shape[0], -1, 4, panels.shape[2]).swapaxes(2, 3)


def for_all_columns(values: Shaped[Array, " out"]) -> Shaped[Array, " padded_out"]:
    """What each column of a matrix has, and zeros for those that fill up its last panel."""
    return in_panels(values[None]).reshape(-1)


def out_of_quads(
    quads: Int8[Array, "panels quads width 4"], inputs: int, outputs: int
) -> Int8[Array, "in out"]:
    """The matrix of so many inputs and outputs that stands in quads."""
    count, fours, width, _ = quads.shape
    return out_of_panels(quads.swapaxes(2, 3).reshape(count, 4 * fours, width), outputs)[:inputs]


def columns_of_quads(
    quads: Int8[Array, "panels quads width 4"], outputs: Int[Array, "..."]
) -> Int8[Array, "... padded_in"]:
    """What leads to each of some outputs of a matrix in quads, and the zeros that fill up the last ones."""
    width = quads.shape[2]
    return quads[outputs // width, :, outputs % width].reshape(*outputs.shape, -1)


def multiply_rounded(
    x: Float[Array, "rows in"],
    quads: Int8[Array, "panels quads width 4"],
    sums: Int32[Array, " padded_out"],
    scale: Float16[Array, " padded_out"],
    outputs: int,
    *,
    bits: Literal[8, 16],
    bias: Float[Array, " padded_out"] | None = None,
    activation: str | None = None,
    added: Float[Array, "rows out"] | None = None,
    norm: RowNorm | None = None,
) -> Float[Array, "rows out"]:
    """`x @ (kernel * scale)` in float32, of the integers next to x where a row's largest is 127 or 32767, or
    an activation of that and a bias, added to something or not; of the rows, or of their norms.

    Integers add up exactly, so that a row's result depends neither on the others nor on the order. Those of
    16 bits are two rows of 8 each.

    Args:
      x: float32.
      quads: from `in_quads`.
      sums: over the inputs of each column of the kernel, filled up by `for_all_columns`.
      scale: of each column, filled up likewise.
      outputs: columns of the kernel.
      bits: of the integers that x becomes.
      bias: of each column, filled up likewise; where there is an activation.
      activation: one that serves; none: the product itself.
      added: what that is added to; where there is an activation.
      norm: what is done to the rows first; none: nothing.
    """
    panels, fours, width, four = quads.shape
    # Machine code takes what it is given at its word.
    assert rounding_serves(x.shape[1])
    assert (width, four) == (panel_width(vectors()), 4)
    assert panels * width - outputs in range(width)
    assert fours * 4 % _AT_ONCE == 0
    assert fours * 4 - x.shape[1] in range(_AT_ONCE)
    assert (x.dtype, quads.dtype, sums.dtype, scale.dtype) == (jnp.float32, jnp.int8, jnp.int32, jnp.float16)
    assert scale.shape == sums.shape == (panels * width,)
    assert (bias is None) == (activation is None)
    assert bias is None or (bias.shape, bias.dtype) == (scale.shape, jnp.float32)
    out = jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    assert added is None or (activation is not None and (added.shape, added.dtype) == (out.shape, out.dtype))
    if not out.size * fours:
        assert not out.size or activation is None, "of no inputs there would be the bias"
        return jnp.zeros(out.shape, out.dtype)
    activate = None if activation is None else ACTIVATIONS[activation]
    ends = [activate.__name__] if activate else []
    kind = norm.kind if norm else None
    parts = *ends, *(["added"] if added is not None else []), *([kind] if kind else [])
    name = "_".join(["ragjax_rounded", str(bits), *parts])
    custom_call(name, partial(rounded_text, bits, activate, kind, adds=added is not None))
    call = jax.ffi.ffi_call(name, out, vmap_method="sequential")
    assert norm is None or norm_precedes(x.shape[1])
    norm_operands = norm.operands(x.shape[1]) if norm else []
    if x.shape[1] < 4 * fours:
        x = jnp.pad(x, ((0, 0), (0, 4 * fours - x.shape[1])))
    ends_with = (each for each in (bias, added) if each is not None)
    return call(x, quads, sums, scale, *ends_with, *norm_operands)
