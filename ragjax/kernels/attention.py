"""Attention of a few queries to keys and values in buffers, as a decoding step has it.

XLA's CPU backend makes two batched products and a softmax of it, each over whole buffers and, where they are
small, on one core. Here XLA's threads share out the heads, and only keys that a query may see are read.
"""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

from ragjax.kernels.attention_text import attention_text
from ragjax.kernels.machine import interface, register, vectors
from ragjax.kernels.panels import panels_serve

_COMPILING = threading.Lock()
_NAME = "ragjax_attend"


def attend_serves(head: int) -> bool:
    """Whether there is such a kernel for heads of this width."""
    return panels_serve() and head % 4 == 0


def attend_few(
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
      value: of the same type.
      *scales: of the keys and of the values, where they are integers.
      mask: True where a query may see a key.
      scale: multiplies the scores.
    """
    out = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    if not query.size or not key.size:
        return jnp.zeros(out.shape, out.dtype)
    target = _target(query.shape[-1], bool(scales))
    call = jax.ffi.ffi_call(target, out, vmap_method="sequential")
    return call(query, mask, scale.astype(jnp.float32), key, value, *scales)


def _target(head: int, small: bool) -> str:
    """The custom call, which is compiled when it is first asked for."""
    name = f"{_NAME}_{'i8' if small else 'f32'}_{head}"
    minor, lanes = interface(), vectors().lanes
    assert minor is not None
    while head % lanes:
        lanes //= 2
    with _COMPILING:
        register(name, attention_text(head, lanes, minor, small=small))
    return name
