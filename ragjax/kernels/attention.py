"""Attention to keys and values in buffers, as a decoding step and the reading of a prompt have it.

XLA's CPU backend makes two batched products and a softmax of it, each over whole buffers and, where they are
small, on one core. Here XLA's threads share out the heads, and keys are read from the first to the last that
a query may see.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8, Int32

from ragjax.kernels.attention_text import attention_text
from ragjax.kernels.calls import custom_call
from ragjax.kernels.machine import kernels_serve, vectors


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


def hold_and_attend(
    together: Float[Array, "batch queries heads_and_new head"],
    key: Float[Array, "*batch kv_heads keys head"],
    value: Float[Array, "*batch kv_heads keys head"],
    at: Int32[Array, " batch"],
    *,
    mask: Bool[Array, "batch queries keys"],
    scale: Float[Array, ""],
) -> tuple[
    Float[Array, "batch queries heads head"],
    Float[Array, "*batch kv_heads keys head"],
    Float[Array, "*batch kv_heads keys head"],
]:
    """`attend` once new keys and values are in the buffers, and the buffers, in the place of those given.

    Args:
      together: float32: of each position all heads of queries, then those of its key, then of its value.
      key: float32; of one sequence also without the first axis.
      value: like the keys.
      at: where in the buffers of each sequence the first is put, at least 0; one too large is moved back
        until all fit.
      mask: True where a query may see a key.
      scale: multiplies the scores.
    """
    batch, queries, all_heads, head = together.shape
    kv_heads, keys, _ = key.shape[-3:]
    # Machine code takes what it is given at its word.
    assert together.dtype == key.dtype == value.dtype == jnp.float32
    assert key.shape == value.shape
    assert key.shape == (*((batch,) if key.ndim == 4 or batch > 1 else ()), kv_heads, keys, head)
    heads = all_heads - 2 * kv_heads
    assert heads > 0
    assert heads % kv_heads == 0
    assert 0 < queries <= keys
    assert (at.shape, at.dtype) == ((batch,), jnp.int32)
    assert (mask.shape, mask.dtype) == ((batch, queries, keys), bool)
    shapes = ((batch, queries, heads, head), key.shape, value.shape)
    call = jax.ffi.ffi_call(
        _named(head, small=False, holds=True), [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        vmap_method="sequential", input_output_aliases={3: 1, 4: 2},
    )  # fmt: skip
    out, key, value = call(together, mask, scale.astype(jnp.float32), key, value, at)
    return out, key, value


def _named(head: int, *, small: bool, holds: bool = False) -> str:
    lanes = vectors().lanes
    while head % lanes:
        lanes //= 2
    name = f"ragjax_attend_{'i8' if small else 'f32'}{'_new' if holds else ''}_{head}_{lanes}"
    return custom_call(name, partial(attention_text, head, lanes, small=small, holds=holds))
