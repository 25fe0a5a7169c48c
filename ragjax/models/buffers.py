"""Buffers of fixed length, written at one place for all sequences or at a place of its own for each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


def put(
    buffer: Shaped[Array, "batch *shape"],
    new: Shaped[Array, "batch *shape_of_new"],
    at: Int[Array, "#batch"] | Int[Array, ""],
    *,
    axis: int = 1,
) -> Shaped[Array, "batch *shape"]:
    """`buffer` with `new` from index `at` of an axis on, in the buffer's type.

    Args:
      buffer: long enough for what is written: an index too large is moved back until it fits.
      new: what is written.
      at: one index for all sequences, or one for each; at least 0.
      axis: which is written along; not the first.
    """
    new = new.astype(buffer.dtype)
    if at.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, at, axis)

    def one(row, part, i):
        return jax.lax.dynamic_update_slice_in_dim(row, part, i, axis - 1)

    return jax.vmap(one)(buffer, new, at)


def take(
    buffer: Shaped[Array, "batch length *rest"], at: Int[Array, " batch"], size: int
) -> Shaped[Array, "batch size *rest"]:
    """`size` entries of each sequence, from its own index on."""
    places = at[:, None] + jnp.arange(size)
    return jax.vmap(lambda row, i: row[i])(buffer, places)
