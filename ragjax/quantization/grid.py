"""The numbers that integers can stand for, and the way there and back; kernels are [inputs, outputs].

Leading axes, as that of layers, are gone along. A scale is a number that float16 has, so that files keep it
in two bytes without a change: weights of a group that are all below about 1e-6 become 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from ragjax.quantization.scheme import Scheme


class Grid(NamedTuple):
    """The integer q of a group stands for (q - zero) * scale."""

    scale: Float[Array, "*layers groups out"]
    """Distance of neighbours, float32 with values that float16 has. 0: all weights are 0. May be negative."""
    zero: Int8[Array, "*layers groups out"] | None
    """The integer that stands for 0; none: 0."""


def grid(kernel: Float[Array, "*layers in out"], scheme: Scheme) -> Grid:
    """The grid that spans the weights of each group.

    Symmetric it is that of GGUF's Q8_0 and Q4_0: with 8 bits the largest magnitude becomes 127 or -127; with
    4 bits the weight of the largest magnitude becomes -8, which has the scale take its sign, and no integer
    goes unused. Otherwise it reaches from the least weight, or 0, to the largest, or 0.

    Args:
      kernel: weights; `group` divides their inputs.
      scheme: bits, groups, symmetry.
    """
    weights = _grouped(kernel.astype(jnp.float32), scheme)
    high, low = weights.max(-2), weights.min(-2)
    if scheme.symmetric:
        extreme = jnp.where(high >= -low, high, low)
        scale = jnp.abs(extreme) / 127 if scheme.bits == 8 else extreme / scheme.lowest
        return Grid(_half(scale), None)
    high, low = jnp.maximum(high, 0), jnp.minimum(low, 0)
    scale = _half((high - low) / (scheme.highest - scheme.lowest))
    zero = scheme.lowest - low * _inverse(scale)
    return Grid(scale, jnp.clip(jnp.round(zero), scheme.lowest, scheme.highest).astype(jnp.int8))


def to_codes(
    kernel: Float[Array, "*layers in out"], grid: Grid, scheme: Scheme
) -> Int8[Array, "*layers in out"]:
    """The nearest integers of a grid; a weight of 0 becomes the integer that stands for 0.

    Args:
      kernel: weights.
      grid: theirs, or one chosen otherwise.
      scheme: bits, groups, symmetry.
    """
    weights = _grouped(kernel.astype(jnp.float32), scheme)
    codes = jnp.round(weights * _inverse(grid.scale)[..., None, :])
    if grid.zero is not None:
        codes = codes + grid.zero[..., None, :]
    return jnp.clip(codes, scheme.lowest, scheme.highest).astype(jnp.int8).reshape(kernel.shape)


def from_codes(
    codes: Int[Array, "*layers in out"], grid: Grid, scheme: Scheme
) -> Float[Array, "*layers in out"]:
    """The float32 numbers that integers stand for.

    Args:
      codes: integers of the grid.
      grid: its scales and zero points.
      scheme: bits, groups, symmetry.
    """
    steps = _grouped(codes, scheme).astype(jnp.float32)
    if grid.zero is not None:
        steps = steps - grid.zero[..., None, :].astype(jnp.float32)
    return (steps * grid.scale[..., None, :].astype(jnp.float32)).reshape(codes.shape)


def rounded(kernel: Float[Array, "*layers in out"], scheme: Scheme) -> Float[Array, "*layers in out"]:
    """Each weight rounded to the nearest on the grid of its group, float32; 0 stays 0.

    Args:
      kernel: weights.
      scheme: bits, groups, symmetry.
    """
    spanned = grid(kernel, scheme)
    return from_codes(to_codes(kernel, spanned, scheme), spanned, scheme)


def _grouped(kernel: Array, scheme: Scheme) -> Array:
    """[..., groups, group, out]."""
    *lead, inputs, outputs = kernel.shape
    groups = scheme.groups(inputs)
    return kernel.reshape(*lead, groups, inputs // groups, outputs)


def _half(scale: Array) -> Array:
    return scale.astype(jnp.float16).astype(jnp.float32)


def _inverse(scale: Array) -> Array:
    return jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))
