"""Buffers of keys and values: floats, or integers of 8 bits with a scale for each position and head.

What one head has of a sequence lies together in memory, so that a step of decoding reads it as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from ragjax.models.buffers import put


class Rounded(NamedTuple):
    """Keys or values as `codes * scale`."""

    codes: Int8[Array, "batch kv_heads length head"]
    scale: Float[Array, "batch kv_heads length 1"]
    """The largest magnitude of a head over 127."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys or values."""
        return self.codes.shape

    @property
    def dtype(self) -> Any:
        """Type of the integers, as `empty_buffer` takes it."""
        return self.codes.dtype


Buffer: TypeAlias = Array | Rounded


class KeyValues(NamedTuple):
    """Keys and values of one layer, in buffers of fixed length [batch, kv_heads, length, head], or of one
    sequence [kv_heads, length, head]."""

    key: Buffer
    value: Buffer

    @property
    def length(self) -> int:
        """Positions there is room for."""
        return self.key.shape[-2]


def empty_buffer(shape: tuple[int, int, int, int], dtype: Any) -> Buffer:
    """A buffer with nothing in it.

    Args:
      shape: [batch, kv_heads, length, head].
      dtype: of floats, or int8.
    """
    if jnp.dtype(dtype) != jnp.int8:
        return jnp.zeros(shape, dtype)
    return Rounded(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-1], 1), jnp.float32))


def held(
    buffer: Buffer,
    new: Float[Array, "batch new kv_heads head"],
    at: Int[Array, ""] | Int[Array, " batch"],
) -> Buffer:
    """A buffer with new keys or values, in its type, from position `at` on."""
    new, axis = new.swapaxes(1, 2), len(buffer.shape) - 2
    if axis == 1:
        new, at = new[0], at.reshape(())
    if not isinstance(buffer, Rounded):
        return put(buffer, new, at, axis=axis)
    new = new.astype(jnp.float32)
    scale = jnp.abs(new).max(-1, keepdims=True) / 127
    codes = jnp.round(new / jnp.where(scale == 0, 1, scale))
    return Rounded(put(buffer.codes, codes, at, axis=axis), put(buffer.scale, scale, at, axis=axis))


def alone(cache: tuple[KeyValues, ...]) -> tuple[KeyValues, ...]:
    """The buffers of a batch of one sequence without the first axis; of more as they are.

    For loops: XLA's CPU backend drops such an axis from a product, and then copies at every turn a buffer
    that is written and read.
    """
    return jax.tree.map(lambda x: x[0] if len(x) == 1 else x, cache)


def batched(cache: tuple[KeyValues, ...]) -> tuple[KeyValues, ...]:
    """The buffers with the axis that `alone` took."""
    return jax.tree.map(lambda x: x[None] if x.ndim == 3 else x, cache)
