"""Attention to keys and values in buffers, as a decoding step and the reading of a prompt have it.

XLA's CPU backend makes two batched products and a softmax of it, each over whole buffers and, where they are
small, on one core. Here XLA's threads share out the heads, and keys are read from the first to the last that
a query may see.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

from ragjax.kernels.attention_text import attention_text
from ragjax.kernels.machine import custom_call, kernels_serve, vectors


def attend_serves(head: int) -> bool:
    """Whether there is such a kernel for heads of this width."""
    return kernels_serve() and head % 4 == 0


def attend(
    query: Float[Array, "batch queries heads head"],
    key: Float[Array, "*batch kv_heads keys head"] | Int8[Array, "*batch kv_heads keys head"],
    value: Float[Array, "*batch kv_heads keys head"] | Int8[Array, "*batch kv_heads keys head"],
    *scales: Float[Array, "*batch kv_heads keys 1"],
    mask: Bool[Array, "batch queries keys"],
    scale: Float[Array, ""],
) -> Float[Array, "batch queries heads head"]:
    """softmax(scale * QK' + mask) V in float32; 0 where a query may see nothing.

    A query's result depends neither on the other queries nor on how many keys there are that it may not see.

    Args:
      query: float32.
      key: float32, or integers; of one sequence also without the first axis.
      value: like the keys.
      *scales: of the keys and of the values, where they are integers.
      mask: True where a query may see a key.
      scale: multiplies the scores.
    """
    batch, queries, heads, head = query.shape
    # Machine code takes what it is given at its word.
    assert query.dtype == jnp.float32
    assert key.dtype == value.dtype == (jnp.int8 if scales else jnp.float32)
    assert key.shape == value.shape
    kv_heads, keys, _ = key.shape[-3:]
    assert key.shape == (*((batch,) if key.ndim == 4 or batch > 1 else ()), kv_heads, keys, head)
    assert heads % max(kv_heads, 1) == 0
    assert all(x.dtype == jnp.float32 and x.shape == (*key.shape[:-1], 1) for x in scales)
    assert len(scales) in (0, 2)
    assert mask.dtype == bool
    assert mask.shape == (batch, queries, keys)
    out = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    if not query.size or not key.size:
        return jnp.zeros(out.shape, out.dtype)
    call = jax.ffi.ffi_call(_named(head, small=bool(scales)), out, vmap_method="sequential")
    return call(query, mask, scale.astype(jnp.float32), key, value, *scales)


def _named(head: int, *, small: bool) -> str:
    lanes = vectors().lanes
    while head % lanes:
        lanes //= 2
    name = f"ragjax_attend_{'i8' if small else 'f32'}_{head}_{lanes}"
    return custom_call(name, partial(attention_text, head, lanes, small=small))
