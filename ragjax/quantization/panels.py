"""Integers in panels, which stand among the parameters while tokens are written on CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Int, Int8, Int32, UInt8

from ragjax.kernels.panels import (
    columns_of,
    columns_of_quads,
    in_panels,
    in_quads,
    multiply_groups,
    multiply_panels,
    multiply_quads,
    out_of_group_panels,
    out_of_panels,
    out_of_quads,
    quads_serve,
)
from ragjax.quantization.packing import unpack
from ragjax.quantization.products import rounded_inputs

_MIDDLE = 128
"""What is added to integers of 8 bits with a sign, to be taken off the sums again."""
_HALFWAY = 32768
"""The same of 16 bits."""
_MOST_INPUTS = (2**31 - 1) // (255 * 128)
"""Products of 8 bits with as many that 32 bits hold the sum of."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PanelQuantized:
    """Stands for a kernel [in, out] of one scale an output; made by `panel_quantized`."""

    panels: Int8[Array, "panels in width"] | Int8[Array, "panels quads width 4"]
    """In quads where the inputs become integers as well."""
    scale: Float16[Array, " out"]
    input_scale: Float[Array, " in"] | None
    """Divides the inputs; none: 1."""
    sums: Int32[Array, " out"] | None
    """Of the integers of each output, where the inputs become integers."""
    inputs: int = field(metadata={"static": True})
    input_bits: Literal[0, 8, 16] = field(metadata={"static": True})
    """Of the integers that the inputs become, 8 or 16; 0: they stay floats."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return (self.inputs, *self.scale.shape)

    @property
    def size(self) -> int:
        """Weights of the kernel."""
        return self.inputs * self.scale.size

    def _codes(self) -> Int8[Array, "in out"]:
        if not self.input_bits:
            return out_of_panels(self.panels, self.scale.size)
        return out_of_quads(self.panels, self.inputs, self.scale.size)

    def whole(self) -> Float[Array, "in out"]:
        """The kernel, in float32."""
        kernel = self._codes() * self.scale.astype(jnp.float32)
        return kernel if self.input_scale is None else kernel / self.input_scale[:, None]

    def nonzero(self) -> Bool[Array, "in out"]:
        """Where the kernel is not 0."""
        return (self._codes() != 0) & (self.scale != 0)

    def in_panels(self) -> PanelQuantized:
        """Itself."""
        return self

    def multiply(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """`x @ kernel` in float32, from the integers."""
        rows, outputs = _divided(x, self.input_scale).astype(jnp.float32), self.scale.size
        if self.sums is None:
            made = multiply_panels(rows, self.panels, outputs)
        elif self.input_bits == 16:
            made = _in_halves(rows, self.panels, self.sums)
        else:
            integers, step = rounded_inputs(rows)
            unsigned = (integers.astype(jnp.int32) + _MIDDLE).astype(jnp.uint8)
            made = (multiply_quads(unsigned, self.panels, outputs) - _MIDDLE * self.sums) * step
        return (made * self.scale.astype(jnp.float32)).reshape(*x.shape[:-1], -1)

    def columns(self, outputs: Int[Array, "..."]) -> Float[Array, "... in"]:
        """What leads to each of some outputs, in float32; not with scaled inputs."""
        assert self.input_scale is None
        if not self.input_bits:
            codes = columns_of(self.panels, outputs)
        else:
            codes = columns_of_quads(self.panels, outputs)[..., : self.inputs]
        return codes * self.scale[outputs].astype(jnp.float32)[..., None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupPanels:
    """Stands for a kernel [in, out] of integers of 4 bits and a scale for each output and group of inputs."""

    panels: UInt8[Array, "panels groups rows width"]
    """From `ragjax.kernels.panels.in_group_panels`."""
    input_scale: Float[Array, " in"] | None
    """Divides the inputs; none: 1."""
    outputs: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        _, groups, rows, _ = self.panels.shape
        return (2 * groups * (rows - 2), self.outputs)

    @property
    def size(self) -> int:
        """Weights of the kernel."""
        return self.shape[0] * self.outputs

    def whole(self) -> Float[Array, "in out"]:
        """The kernel, in float32."""
        packed, scale = out_of_group_panels(self.panels, self.outputs)
        codes = unpack(packed, len(scale)).reshape(len(scale), -1, self.outputs)
        kernel = (codes * scale.astype(jnp.float32)[:, None]).reshape(self.shape)
        return kernel if self.input_scale is None else kernel / self.input_scale[:, None]

    def nonzero(self) -> Bool[Array, "in out"]:
        """Where the kernel is not 0."""
        return self.whole() != 0

    def in_panels(self) -> GroupPanels:
        """Itself."""
        return self

    def multiply(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """`x @ kernel` in float32, from the integers."""
        rows = _divided(x, self.input_scale).astype(jnp.float32)
        made = multiply_groups(rows, self.panels, self.outputs)
        return made.reshape(*x.shape[:-1], self.outputs)


def _divided(x: Float[Array, "... in"], scale: Float[Array, " in"] | None) -> Float[Array, "rows in"]:
    x = x if scale is None else (x / scale).astype(x.dtype)
    return x.reshape(-1, x.shape[-1])


def exact_input_bits(inputs: int) -> Literal[0, 16]:
    """How inputs that are not rounded to 8 bits are best multiplied with integers of 8 bits.

    As integers of 16 bits, each token's largest 32767, where the processor multiplies integers and no sum of
    so many is more than 32 bits hold: as two of 8 bits each they take half the time of floats. What they
    leave out is a small part of what the weights' rounding did, unless one input is thousands of times the
    others.
    """
    return 16 if integers_serve(inputs) else 0


def integers_serve(inputs: int) -> bool:
    """Whether so many inputs may become integers."""
    return quads_serve() and inputs <= _MOST_INPUTS


def panel_quantized(
    codes: Int8[Array, "in out"],
    scale: Float16[Array, " out"],
    input_scale: Float[Array, " in"] | None = None,
    *,
    input_bits: Literal[0, 8, 16],
) -> PanelQuantized:
    """What stands for `codes * scale / input_scale`.

    Args:
      codes: integers.
      scale: of each output.
      input_scale: of each input; none: 1.
      input_bits: 0 for inputs that stay floats; 8, where integers serve, for those that are rounded, each
        token's largest to 127; 16 from `exact_input_bits`.
    """
    assert not input_bits or integers_serve(len(codes))
    sums = codes.astype(jnp.int32).sum(0) if input_bits else None
    laid = in_quads(codes) if input_bits else in_panels(codes)
    return PanelQuantized(laid, scale, input_scale, sums, codes.shape[0], input_bits)


def _in_halves(
    x: Float[Array, "rows in"], quads: Int8[Array, "panels quads width 4"], sums: Int32[Array, " out"]
) -> Float[Array, "rows out"]:
    """`x` in 16 bits times the integers: the upper and the lower 8 bits are rows of one product."""
    step = jnp.abs(x).max(-1, keepdims=True) / (_HALFWAY - 1)
    integers = jnp.round(x / jnp.where(step == 0, 1, step)).astype(jnp.int32) + _HALFWAY
    halves = jnp.concatenate([integers >> 8, integers & 255]).astype(jnp.uint8)
    upper, lower = jnp.split(multiply_quads(halves, quads, len(sums)), 2)
    # Not in integers: 256 times the upper sum may be more than 32 bits hold.
    found = 256.0 * (upper - _MIDDLE * sums).astype(jnp.float32) + lower.astype(jnp.float32)
    return found * step
