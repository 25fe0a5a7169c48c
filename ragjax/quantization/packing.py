"""Two integers of 4 bits in a byte: of each group the first half below, the second half above, as in Q4_0."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int8, UInt8


def pack(codes: Int8[Array, "*layers in out"], groups: int) -> UInt8[Array, "*layers bytes out"]:
    """Integers in [-8, 7], two to a byte; group by group, so that whoever holds some rows holds whole groups.

    Args:
      codes: an even number of inputs in each group.
      groups: groups of inputs.
    """
    *lead, inputs, outputs = codes.shape
    bits = codes.astype(jnp.uint8).reshape(*lead, groups, 2, inputs // (2 * groups), outputs) & 15
    return (bits[..., 0, :, :] | (bits[..., 1, :, :] << 4)).reshape(*lead, inputs // 2, outputs)


def nibbles(packed: UInt8[Array, "*shape"]) -> tuple[Int8[Array, "*shape"], Int8[Array, "*shape"]]:
    """The lower and the upper integer of each byte."""
    # The sign of a half is that of its highest bit: it is moved to the top of the byte, and back down.
    return (packed << 4).astype(jnp.int8) >> 4, packed.astype(jnp.int8) >> 4


def unpack(packed: UInt8[Array, "*layers bytes out"], groups: int) -> Int8[Array, "*layers in out"]:
    """The integers that `pack` was given."""
    *lead, rows, outputs = packed.shape
    halves = nibbles(packed.reshape(*lead, groups, rows // groups, outputs))
    return jnp.concatenate(halves, axis=-2).reshape(*lead, 2 * rows, outputs)
