"""Causal self-attention in one kernel that holds no scores: cuDNN's, on NVIDIA cards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_WIDEST_HEAD = 128


def fused_serves(dtype: jnp.dtype, head_width: int) -> bool:
    """Whether the kernel is there for heads of this type and width, on JAX's default backend."""
    return (
        jax.default_backend() == "gpu"
        and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and head_width % 8 == 0
        and head_width <= _WIDEST_HEAD
    )


def fused_attend(
    query: Float[Array, "batch seq heads head"],
    key: Float[Array, "batch seq kv_heads head"],
    value: Float[Array, "batch seq kv_heads head"],
    *,
    scale: float | Float[Array, ""],
) -> Float[Array, "batch seq heads head"]:
    """softmax(scale * QK') V over what is not after a query, the softmax in float32.

    Args:
      query: heads of queries, in 16 bits; each group of heads / kv_heads shares a head of keys.
      key: keys.
      value: values.
      scale: multiplies the scores; 1 / sqrt(head) is exact, another rounds the queries once more.
    """
    usual = query.shape[-1] ** -0.5
    scaled = (query.astype(jnp.float32) * (scale / usual)).astype(query.dtype)
    return jax.nn.dot_product_attention(
        scaled, key, value, scale=usual, is_causal=True, implementation="cudnn"
    )
