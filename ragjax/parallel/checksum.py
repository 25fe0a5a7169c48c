"""A short number for what arrays hold, found where they lie."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from ragjax.parallel.hosts import to_host

_ODD = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)
"""Multipliers of the places along an axis, and of what is mixed."""


def checksum(tree: Any) -> int:
    """32 bits of every bit of a tree of arrays and of its place.

    It tells an array that was replaced from the one that was there, however the devices share either: each
    device adds up its part, and the sums wrap. It withstands chance, and nobody who means to deceive, for
    whom `ragjax.teacher_cache.teacher_digest` fetches and hashes all. All hosts call it.

    Args:
      tree: of arrays of numbers, of at most 32 bits each.

    Example:
      >>> import numpy as np
      >>> before = {"w": np.arange(6.0, dtype=np.float32)}
      >>> checksum(before) == checksum({"w": before["w"][::-1]})
      False
    """
    found = 0
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        found = (found * _ODD[0] + int(to_host(_sum(jnp.asarray(leaf))) + number)) % 2**32
    return found


@jax.jit
def _sum(x: Array) -> UInt32[Array, ""]:
    width = x.dtype.itemsize * 8
    bits = x.astype(jnp.uint32)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis, size in enumerate(x.shape):
        along = jnp.arange(size, dtype=jnp.uint32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        place = (place + along) * jnp.uint32(_ODD[axis % 3])
    mixed = (bits ^ place) * jnp.uint32(_ODD[3])
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)
