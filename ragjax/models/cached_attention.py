"""Attention to keys and values that earlier tokens left in buffers, and the new ones' way there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.kernels import attention
from ragjax.kernels.attention import attend, attend_serves
from ragjax.kernels.instead import by_kernel
from ragjax.models.attention import attend_buffers
from ragjax.models.key_values import KeyValues, Rounded, held
from ragjax.parallel.pin import several_devices

_FEW = 16
"""Queries up to which the kernel that reads keys and values puts the new ones into buffers: those of a step,
and of a draft that is checked. Beside a prompt, XLA's programs for that take no time."""


def hold_and_attend(
    query: Float[Array, "batch queries heads head"],
    key: Float[Array, "batch queries kv_heads head"],
    value: Float[Array, "batch queries kv_heads head"],
    cache: KeyValues,
    at: Int[Array, ""] | Int[Array, " batch"],
    *,
    mask: Bool[Array, "#batch queries keys"],
    scale: float | Float[Array, ""],
) -> tuple[Float[Array, "batch queries heads head"], KeyValues]:
    """Puts new keys and values into the buffers, and attends to all that is in them.

    Args:
      query: heads of queries.
      key: the keys of the same positions.
      value: their values.
      cache: the buffers before.
      at: where in the buffers the first of them goes, at least 0: one place for all, or one for each.
      mask: True where a query may see a key.
      scale: multiplies the scores.

    Returns:
      What `attend_cached` does, and the buffers.
    """
    floats = all(each.dtype == jnp.float32 for each in (key, value, *cache))
    if not (floats and 0 < query.shape[1] <= _FEW and _kernel_serves(query, cache)):
        return _apart(query, key, value, cache, at, mask, jnp.asarray(scale, jnp.float32))
    given = query, key, value, cache, at, mask, jnp.asarray(scale, jnp.float32)
    return by_kernel(_together, _apart, *given)


def _together(query, key, value, cache, at, mask, scale):
    # Of one product, this is the product.
    together = jnp.concatenate([query, key, value], axis=2)
    at = jnp.broadcast_to(at.astype(jnp.int32), (len(query),))
    out, *buffers = attention.hold_and_attend(together, *cache, at, mask=_for_each(query, mask), scale=scale)
    return out, KeyValues(*buffers)


def _apart(query, key, value, cache, at, mask, scale):
    cache = KeyValues(held(cache.key, key, at), held(cache.value, value, at))
    return attend_cached(query, cache, mask=mask, scale=scale), cache


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


def _for_each(query: jax.Array, mask: jax.Array) -> jax.Array:
    """The mask of each sequence."""
    return jnp.broadcast_to(mask, (len(query), *mask.shape[1:]))


def _in_buffers(query: jax.Array, cache: KeyValues, mask: jax.Array, scale: jax.Array) -> jax.Array:
    mask = _for_each(query, mask)
    key, value = cache
    if isinstance(key, Rounded) and isinstance(value, Rounded):
        return attend(query, key.codes, value.codes, key.scale, value.scale, mask=mask, scale=scale)
    assert not isinstance(key, Rounded)
    assert not isinstance(value, Rounded)
    return attend(query, key, value, mask=mask, scale=scale)


def _by_products(query: jax.Array, cache: KeyValues, mask: jax.Array, scale: jax.Array) -> jax.Array:
    return attend_buffers(query, *cache, mask=mask, scale=scale)
