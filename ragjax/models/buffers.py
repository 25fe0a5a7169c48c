"""Buffers of fixed length, written at one place for all sequences or at a place of its own for each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


def put(
    buffer: Shaped[Array, "batch length *rest"],
    new: Shaped[Array, "batch new *rest"],
    at: Int[Array, "#batch"] | Int[Array, ""],
) -> Shaped[Array, "batch length *rest"]:
    """`buffer` with `new` from index `at` of the second axis on, in the buffer's type.

    Args:
      buffer: long enough for what is written: an index too large is moved back until it fits.
      new: what is written.
      at: one index for all sequences, or one for each.
    """
    new = new.astype(buffer.dtype)
    rest = (0,) * (buffer.ndim - 2)
    if at.ndim == 0:
        return jax.lax.dynamic_update_slice(buffer, new, (0, at, *rest))
    return jax.vmap(lambda row, part, i: jax.lax.dynamic_update_slice(row, part, (i, *rest)))(buffer, new, at)


def take(
    buffer: Shaped[Array, "batch length *rest"], at: Int[Array, " batch"], size: int
) -> Shaped[Array, "batch size *rest"]:
    """`size` entries of each sequence, from its own index on."""
    places = at[:, None] + jnp.arange(size)
    return jax.vmap(lambda row, i: row[i])(buffer, places)
