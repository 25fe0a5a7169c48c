"""A kernel of small integers, which stands among the parameters where the float kernel would."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Int8, UInt8

from ragjax.kernels.panels import groups_serve, in_group_panels
from ragjax.kernels.rounded import rounding_serves
from ragjax.quantization.grid import Grid, from_codes, grid, to_codes
from ragjax.quantization.packing import pack, unpack
from ragjax.quantization.panels import (
    GroupPanels,
    PanelQuantized,
    exact_input_bits,
    panel_quantized,
)
from ragjax.quantization.products import multiply
from ragjax.quantization.scheme import Scheme


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """`from_codes(codes)` divided by `input_scale` input by input; made by `quantized` or `encoded`.

    A pytree node, whose arrays are sliced by layer, placed on devices and split over a mesh as a kernel is;
    their names are the kernel's with `/codes`, `/scale` and so on behind.
    """

    codes: Int8[Array, "*layers in out"] | UInt8[Array, "*layers bytes out"]
    """Integers; those of 4 bits two to a byte, by `ragjax.quantization.packing`."""
    scale: Float16[Array, "*layers groups out"]
    """Of the grid, unchanged: it holds numbers of float16 alone."""
    zero: Int8[Array, "*layers groups out"] | None
    """Of the grid."""
    input_scale: Float[Array, "*layers in"] | None
    """Divides the inputs, where a method has multiplied the weights; none: 1."""
    scheme: Scheme = field(metadata={"static": True})
    """Bits, groups, symmetry; whether inputs are rounded."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel it stands for."""
        *lead, rows, outputs = self.codes.shape
        return (*lead, rows * 2 if self.scheme.bits == 4 else rows, outputs)

    @property
    def size(self) -> int:
        """Weights it stands for."""
        return math.prod(self.shape)

    @property
    def grid(self) -> Grid:
        """Scales, in float32, and zero points."""
        return Grid(self.scale.astype(jnp.float32), self.zero)

    def unpacked(self) -> Int8[Array, "*layers in out"]:
        """The integers, each in a byte."""
        if self.scheme.bits == 8:
            return self.codes
        return unpack(self.codes, self.scale.shape[-2])

    def whole(self) -> Float[Array, "*layers in out"]:
        """The kernel it stands for, in float32."""
        kernel = from_codes(self.unpacked(), self.grid, self.scheme)
        return kernel if self.input_scale is None else kernel / self.input_scale[..., None]

    def nonzero(self) -> Bool[Array, "*layers in out"]:
        """Where that kernel is not 0."""
        return from_codes(self.unpacked(), self.grid, self.scheme) != 0

    def multiply(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """`x @ kernel` in float32, from the integers; of a single layer.

        Args:
          x: inputs.
        """
        if self.input_scale is not None:
            x = (x / self.input_scale).astype(x.dtype)
        return multiply(x, self.codes, self.scale, self.zero, self.scheme)

    def in_panels(self) -> Quantized | PanelQuantized | GroupPanels:
        """The same in panels, if symmetric and of 4 bits, or of 8 with one scale an output; else itself."""
        if self.zero is not None:
            return self
        if self.scheme.bits == 4 and groups_serve():
            laid = in_group_panels(self.codes, self.scale)
            return GroupPanels(laid, self.input_scale, self.shape[1])
        inputs, rounds = self.shape[0], bool(self.scheme.activations)
        if self.scheme.bits == 8 and len(self.scale) == 1 and (rounding_serves(inputs) or not rounds):
            input_bits = 8 if rounds else exact_input_bits(inputs)
            return panel_quantized(self.codes, self.scale[0], self.input_scale, input_bits=input_bits)
        return self


def encoded(
    codes: Int8[Array, "*layers in out"],
    grid: Grid,
    scheme: Scheme,
    input_scale: Float[Array, "*layers in"] | None = None,
) -> Quantized:
    """The kernel that integers of a grid are.

    Args:
      codes: as from `to_codes`.
      grid: its scales are numbers that float16 has, as those of `grid` are.
      scheme: bits, groups, symmetry; whether inputs are rounded.
      input_scale: what the weights were multiplied by, input by input, before they became integers; none: 1.
    """
    if scheme.bits == 4:
        codes = pack(codes, grid.scale.shape[-2])
    return Quantized(codes, grid.scale.astype(jnp.float16), grid.zero, input_scale, scheme)


def quantized(kernel: Float[Array, "*layers in out"], scheme: Scheme) -> Quantized:
    """A kernel rounded to nearest, each group on the grid that spans it.

    Args:
      kernel: weights; `scheme.group` divides their inputs.
      scheme: bits, groups, symmetry; whether inputs are rounded.
    """
    spanned = grid(kernel, scheme)
    return encoded(to_codes(kernel, spanned, scheme), spanned, scheme)
