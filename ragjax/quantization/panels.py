"""Integers in panels, which stand among the parameters while tokens are written on CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Int, Int8, Int32, UInt8

from ragjax.kernels.norm import RowNorm, norms_serve
from ragjax.kernels.panels import (
    columns_of,
    in_panels,
    multiply_groups,
    multiply_panels,
    out_of_group_panels,
    out_of_panels,
)
from ragjax.kernels.rounded import (
    activation_serves,
    columns_of_quads,
    for_all_columns,
    in_quads,
    multiply_rounded,
    norm_precedes,
    out_of_quads,
    rounding_serves,
)
from ragjax.models.norm import norm_in_step
from ragjax.quantization.packing import unpack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PanelQuantized:
    """Stands for a kernel [in, out] of one scale an output; made by `panel_quantized`."""

    panels: Int8[Array, "panels in width"] | Int8[Array, "panels quads width 4"]
    """In quads where the inputs become integers as well."""
    scale: Float16[Array, " out"] | Float16[Array, " padded_out"]
    """Of each output, in quads filled up as they are."""
    input_scale: Float[Array, " in"] | None
    """Divides the inputs; none: 1."""
    sums: Int32[Array, " padded_out"] | None
    """Of the integers of each output, where the inputs become integers."""
    shape: tuple[int, int] = field(metadata={"static": True})
    """Of the kernel."""
    input_bits: Literal[0, 8, 16] = field(metadata={"static": True})
    """Of the integers that the inputs become, 8 or 16; 0: they stay floats."""

    @property
    def size(self) -> int:
        """Weights of the kernel."""
        return math.prod(self.shape)

    def _codes(self) -> Int8[Array, "in out"]:
        if not self.input_bits:
            return out_of_panels(self.panels, self.shape[1])
        return out_of_quads(self.panels, *self.shape)

    def _scale(self) -> Float[Array, " out"]:
        return self.scale[: self.shape[1]].astype(jnp.float32)

    def whole(self) -> Float[Array, "in out"]:
        """The kernel, in float32."""
        kernel = self._codes() * self._scale()
        return kernel if self.input_scale is None else kernel / self.input_scale[:, None]

    def nonzero(self) -> Bool[Array, "in out"]:
        """Where the kernel is not 0."""
        return (self._codes() != 0) & (self._scale() != 0)

    def in_panels(self) -> PanelQuantized:
        """Itself."""
        return self

    def multiply(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """`x @ kernel` in float32, from the integers."""
        if self.input_bits:
            return _of_integers(self, x)
        rows = _divided(x, self.input_scale).astype(jnp.float32)
        made = multiply_panels(rows, self.panels, self.shape[1]) * self._scale()
        return made.reshape(*x.shape[:-1], self.shape[1])

    def beside(self, others: Sequence[PanelQuantized]) -> PanelQuantized | None:
        """What stands for this kernel and behind it the outputs of others; none with scaled inputs."""
        every = self, *others
        bits = self.input_bits
        width = self.panels.shape[2]
        fitting = (kernel.input_bits == bits and not kernel.shape[1] % width for kernel in every)
        if any(kernel.input_scale is not None for kernel in every) or not all(fitting):
            return None
        arrays = [(kernel.panels, kernel.scale, kernel.sums) for kernel in every]
        panels, scale, sums = jax.tree.map(lambda *parts: jnp.concatenate(parts), *arrays)
        outputs = sum(kernel.shape[1] for kernel in every)
        return PanelQuantized(panels, scale, None, sums, (self.shape[0], outputs), bits)

    def active(self, bias: Float[Array, " out"] | None, activation: str) -> ActiveQuantized | None:
        """What stands for `activation(x @ kernel + bias)`; none where inputs stay floats, or there is no such
        activation in kernels."""
        if not self.input_bits or not activation_serves(activation):
            return None
        bias = jnp.zeros(self.shape[1], jnp.float32) if bias is None else bias.astype(jnp.float32)
        return ActiveQuantized(self, for_all_columns(bias), None, activation)

    def columns(self, outputs: Int[Array, "..."]) -> Float[Array, "... in"]:
        """What leads to each of some outputs, in float32; not with scaled inputs."""
        assert self.input_scale is None
        if not self.input_bits:
            codes = columns_of(self.panels, outputs)
        else:
            codes = columns_of_quads(self.panels, outputs)[..., : self.shape[0]]
        return codes * self._scale()[outputs][..., None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ActiveQuantized:
    """Stands for `activation(x @ kernel + bias)`, or that of a norm of x; made by `PanelQuantized.active`."""

    kernel: PanelQuantized
    """Its inputs become integers."""
    bias: Float[Array, " padded_out"]
    """Filled up as the kernel's scale."""
    norm: RowNorm | None
    """Of each token; none: x is what is multiplied."""
    activation: str = field(metadata={"static": True})
    """A key of `ragjax.kernels.activations_text.ACTIVATIONS`."""

    def multiply(
        self, x: Float[Array, "... in"], added: Float[Array, "... out"] | None = None
    ) -> Float[Array, "... out"]:
        """`activation(x @ kernel + bias)` in float32, or that and `added`, in one program."""
        norm = self.norm
        if norm is not None and not norms_serve(math.prod(x.shape[:-1]), x.shape[-1]):
            x, norm = norm_in_step(x, norm.scale, norm.bias, norm.epsilon), None
        return _of_integers(self.kernel, x, self.bias, self.activation, added, norm)

    def after(self, norm: RowNorm) -> ActiveQuantized | None:
        """What stands for the norm of its inputs and this; none with scaled inputs, or of some widths."""
        assert self.norm is None
        if self.kernel.input_scale is not None or not norm_precedes(self.kernel.shape[0]):
            return None
        return replace(self, norm=norm)


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

    def beside(self, others: Sequence[GroupPanels]) -> GroupPanels | None:
        """What stands for this kernel and behind it the outputs of others; none with scaled inputs."""
        every = self, *others
        _, *each, width = self.panels.shape
        fitting = (k.panels.shape[1:] == (*each, width) and not k.outputs % width for k in every)
        if any(kernel.input_scale is not None for kernel in every) or not all(fitting):
            return None
        panels = jnp.concatenate([kernel.panels for kernel in every])
        return GroupPanels(panels, None, sum(kernel.outputs for kernel in every))

    def multiply(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """`x @ kernel` in float32, from the integers."""
        rows = _divided(x, self.input_scale).astype(jnp.float32)
        made = multiply_groups(rows, self.panels, self.outputs)
        return made.reshape(*x.shape[:-1], self.outputs)


def _of_integers(
    kernel: PanelQuantized,
    x: Float[Array, "... in"],
    bias: Float[Array, " padded_out"] | None = None,
    activation: str | None = None,
    added: Float[Array, "... out"] | None = None,
    norm: RowNorm | None = None,
) -> Float[Array, "... out"]:
    """Of inputs, or of their norms, that become integers too: the product, or an activation of it and a bias,
    plus `added`."""
    assert kernel.input_bits
    assert kernel.sums is not None
    outputs = kernel.shape[1]
    rows = None if added is None else added.astype(jnp.float32).reshape(-1, outputs)
    made = multiply_rounded(
        _divided(x, kernel.input_scale).astype(jnp.float32), kernel.panels, kernel.sums, kernel.scale,
        outputs, bits=kernel.input_bits, bias=bias, activation=activation, added=rows,
        norm=norm,
    )  # fmt: skip
    return made.reshape(*x.shape[:-1], outputs)


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
    return 16 if rounding_serves(inputs) else 0


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
    assert not input_bits or rounding_serves(len(codes))
    inputs, outputs = codes.shape
    if not input_bits:
        return PanelQuantized(in_panels(codes), scale, input_scale, None, (inputs, outputs), 0)
    sums = for_all_columns(codes.astype(jnp.int32).sum(0))
    filled = for_all_columns(scale)
    return PanelQuantized(in_quads(codes), filled, input_scale, sums, (inputs, outputs), input_bits)
