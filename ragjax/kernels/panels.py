"""Products of few rows with a matrix, as a decoding step has them: bound by reading the matrix.

XLA's CPU backend reads it at half the memory's rate or less where there are several rows. Here it stands in
panels, some columns each in one piece, so that a core reads straight ahead while the sums of up to eight rows
stay in its registers. That is how a BLAS packs a factor (Goto and van de Geijn, "Anatomy of High-Performance
Matrix Multiplication", 2008); here it is packed once.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, Int, Int8, Shaped, UInt8

from ragjax.kernels.calls import custom_call
from ragjax.kernels.factors import FLOATS, SMALL_WEIGHTS, Factors, small_groups
from ragjax.kernels.machine import has_halves, kernels_serve, vectors
from ragjax.kernels.panels_text import panel_width, panels_text


def groups_serve() -> bool:
    """Whether there are panels of 4 bits: where the processor reads scales of 16 bits."""
    return kernels_serve() and has_halves()


def in_panels(kernel: Shaped[Array, "in out"]) -> Shaped[Array, "panels in width"]:
    """A matrix in panels as wide as this processor likes them, the last one filled up with zeros."""
    inputs, outputs = kernel.shape
    width = panel_width(vectors())
    padded = jnp.pad(kernel, ((0, 0), (0, -outputs % width)))
    return padded.reshape(inputs, padded.shape[1] // width, width).transpose(1, 0, 2)


def out_of_panels(panels: Shaped[Array, "panels in width"], outputs: int) -> Shaped[Array, "in out"]:
    """The matrix of so many outputs that stands in panels."""
    count, inputs, width = panels.shape
    return panels.transpose(1, 0, 2).reshape(inputs, count * width)[:, :outputs]


def columns_of(
    panels: Shaped[Array, "panels in width"], outputs: Int[Array, "..."]
) -> Shaped[Array, "... in"]:
    """What leads to each of some outputs, all of which are there, of a matrix in panels."""
    return panels[outputs // panels.shape[2], :, outputs % panels.shape[2]]


def in_group_panels(
    packed: UInt8[Array, "bytes out"], scale: Float16[Array, "groups out"]
) -> UInt8[Array, "panels groups rows width"]:
    """Integers of 4 bits in panels, behind those of a group the scales that it has for each output.

    Args:
      packed: of each group the first half of its inputs in the lower bits, the second in the upper.
      scale: of each group and output.
    """
    groups = scale.shape[0]
    codes, halves = in_panels(packed), in_panels(scale)
    count, rows, width = codes.shape
    bits = jax.lax.bitcast_convert_type(halves, jnp.uint8).reshape(count, groups, 2, width)
    return jnp.concatenate([codes.reshape(count, groups, rows // groups, width), bits], axis=2)


def out_of_group_panels(
    panels: UInt8[Array, "panels groups rows width"], outputs: int
) -> tuple[UInt8[Array, "bytes out"], Float16[Array, "groups out"]]:
    """The integers and scales that `in_group_panels` was given."""
    count, groups, rows, width = panels.shape
    codes = panels[:, :, :-2].reshape(count, groups * (rows - 2), width)
    bits = panels[:, :, -2:].reshape(count, groups, width, 2)
    scale = jax.lax.bitcast_convert_type(bits, jnp.float16)
    return out_of_panels(codes, outputs), out_of_panels(scale, outputs)


def multiply_panels(
    x: Float[Array, "rows in"],
    panels: Float[Array, "panels in width"] | Int8[Array, "panels in width"],
    outputs: int,
) -> Float[Array, "rows out"]:
    """`x @ kernel` in float32.

    A sum goes along the inputs one by one, however many rows there are: a row's result does not depend on
    the others.

    Args:
      x: float32.
      panels: from `in_panels`; of float32, or of integers, which are read as such.
      outputs: columns of the kernel.
    """
    factors = SMALL_WEIGHTS if panels.dtype == jnp.int8 else FLOATS
    return _call(factors, x, panels, outputs)


def multiply_groups(
    x: Float[Array, "rows in"], panels: UInt8[Array, "panels groups rows width"], outputs: int
) -> Float[Array, "rows out"]:
    """`x @ kernel` in float32.

    Args:
      x: float32.
      panels: from `in_group_panels`.
      outputs: columns of the kernel.
    """
    return _call(small_groups(panels.shape[2] - 2), x, panels, outputs)


def _call(factors: Factors, x: jax.Array, panels: jax.Array, outputs: int) -> jax.Array:
    """The panels' first axis is of panels, their second of steps."""
    kind, inputs = vectors(), panels.shape[1] * (2 * factors.half or 1)
    # Machine code takes what it is given at its word.
    assert panels.shape[0] == -(-outputs // panel_width(kind))
    assert x.shape[1] == inputs
    assert x.dtype == jnp.float32
    out = jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    if not out.size * panels.shape[1]:
        return jnp.zeros(out.shape, out.dtype)
    name = custom_call(f"{factors.name}_{kind.lanes}_{kind.registers}", partial(panels_text, factors, kind))
    return jax.ffi.ffi_call(name, out, vmap_method="sequential")(x, panels)
