"""Attention to keys and values that earlier tokens left in buffers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ragjax.kernels.attention import attend, attend_serves
from ragjax.kernels.instead import by_kernel
from ragjax.models.attention import attend_buffers
from ragjax.models.key_values import KeyValues, Rounded
from ragjax.parallel.pin import several_devices


def attend_cached(
    query: Float[Array, "batch queries heads head"],
    cache: KeyValues,
    *,
    mask: Bool[Array, "#batch queries keys"],
    scale: float | Float[Array, ""],
) -> Float[Array, "batch queries heads head"]:
    """softmax(scale * QK' + mask) V, the softmax in float32, in the type of the queries.

    On one CPU, queries in float32 read their keys, in float32 or 8 bits, from the first to the last that each
    may see, and one that sees none gets 0; elsewhere they read whole buffers.

    Args:
      query: heads of queries; each group of heads / kv_heads, one after another, shares a head of keys.
      cache: the buffers.
      mask: True where a query may see a key.
      scale: multiplies the scores.
    """
    if not _kernel_serves(query, cache):
        return attend_buffers(query, *cache, mask=mask, scale=scale)
    given = query, cache, mask, jnp.asarray(scale, jnp.float32)
    return by_kernel(_in_buffers, _by_products, *given)


def _kernel_serves(query: jax.Array, cache: KeyValues) -> bool:
    key, value = cache
    return (
        query.dtype == jnp.float32
        and key.dtype == value.dtype
        and key.dtype in (jnp.float32, jnp.int8)
        and attend_serves(query.shape[-1])
        and not several_devices()
    )


def _in_buffers(query: jax.Array, cache: KeyValues, mask: jax.Array, scale: jax.Array) -> jax.Array:
    mask = jnp.broadcast_to(mask, (len(query), *mask.shape[1:]))
    key, value = cache
    if isinstance(key, Rounded) and isinstance(value, Rounded):
        return attend(query, key.codes, value.codes, key.scale, value.scale, mask=mask, scale=scale)
    assert not isinstance(key, Rounded)
    assert not isinstance(value, Rounded)
    return attend(query, key, value, mask=mask, scale=scale)


def _by_products(query: jax.Array, cache: KeyValues, mask: jax.Array, scale: jax.Array) -> jax.Array:
    return attend_buffers(query, *cache, mask=mask, scale=scale)
