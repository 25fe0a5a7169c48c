"""Packed masks: one bit a weight instead of one byte."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, UInt8

from ragjax.sparsity.masks import Masks


def pack(mask: Bool[Array, "*shape"]) -> UInt8[Array, "*packed"]:
    """Bits of the last axis in bytes, the first of each eight lowest; what is left over is 0.

    Args:
      mask: any booleans; a layout over devices that leaves the last axis whole is kept.

    Returns:
      The same shape, the last axis an eighth, rounded up.
    """
    return jnp.packbits(mask, axis=-1, bitorder="little")


def unpack(packed: UInt8[Array, "*packed"], columns: int) -> Bool[Array, "*shape"]:
    """The mask that was packed.

    Args:
      packed: from `pack`.
      columns: length of the mask's last axis.
    """
    return jnp.unpackbits(packed, axis=-1, count=columns, bitorder="little").astype(bool)


def pack_masks(masks: Masks) -> PyTree[UInt8[Array, "..."]]:
    """Every mask of a tree, packed; None stays None."""
    return jax.tree.map(pack, masks)


def unpack_masks(packed: PyTree[UInt8[Array, "..."]], params: PyTree) -> Masks:
    """Every mask of a tree; the parameters say how long their last axes are."""
    return jax.tree.map(lambda p, bits: None if bits is None else unpack(bits, p.shape[-1]), params, packed)
