"""Scaled dot-product attention with float32 scores, and the masks it takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.models.key_values import Buffer, Rounded


def attend(
    query: Float[Array, "batch queries heads head"],
    key: Float[Array, "batch keys kv_heads head"],
    value: Float[Array, "batch keys kv_heads head"],
    *,
    mask: Bool[Array, "#batch queries keys"],
    scale: float | Float[Array, ""],
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "batch queries heads head"]:
    """softmax(scale * QK' + mask) V, the softmax in float32, in the type of the queries.

    Args:
      query: heads of queries; each group of heads / kv_heads, one after another, shares a head of keys.
      key: keys.
      value: values.
      mask: True where a query may see a key.
      scale: multiplies the scores.
      dropout_rate: share of the attention weights set to 0; needs `dropout_key`.
      dropout_key: random key of the dropout.
    """
    by_head = key.swapaxes(1, 2), value.swapaxes(1, 2)
    return attend_buffers(
        query, *by_head, mask=mask, scale=scale, dropout_rate=dropout_rate, dropout_key=dropout_key
    )


def attend_buffers(
    query: Float[Array, "batch queries heads head"],
    key: Buffer,
    value: Buffer,
    *,
    mask: Bool[Array, "#batch queries keys"],
    scale: float | Float[Array, ""],
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "batch queries heads head"]:
    """`attend` of keys and values that lie in buffers.

    Args:
      query: heads of queries.
      key: keys [batch, kv_heads, keys, head], or [kv_heads, keys, head] of one sequence; integers enter the
        product, and their scale comes after it.
      value: values, of the same shape.
      mask: True where a query may see a key.
      scale: multiplies the scores.
      dropout_rate: share of the attention weights set to 0; needs `dropout_key`.
      dropout_key: random key of the dropout.
    """
    shape, kv_heads = query.shape, key.shape[-3]
    query = query.reshape(*shape[:2], kv_heads, -1, shape[3])
    if len(key.shape) == 3:
        query, mask = query[0], mask[0]
    keys = key.codes.astype(query.dtype) if isinstance(key, Rounded) else key
    scores = jnp.einsum("...qhgd,...hkd->...hgqk", query, keys, preferred_element_type=jnp.float32) * scale
    if isinstance(key, Rounded):
        scores = scores * _by_key(key.scale)
    scores = jnp.where(mask[..., None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_rate and dropout_key is not None:
        kept = jax.random.bernoulli(dropout_key, 1 - dropout_rate, weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout_rate), 0.0)
    if isinstance(value, Rounded):
        weights, value = weights * _by_key(value.scale), value.codes.astype(query.dtype)
    # In this order and rank: of einsum's own product XLA's CPU backend transposes the values at every token.
    flat = weights.astype(value.dtype).reshape(*weights.shape[:-3], -1, weights.shape[-1])
    out = jnp.matmul(flat, value, preferred_element_type=jnp.float32)
    out = jnp.moveaxis(out.reshape(*weights.shape[:-1], -1), -2, -4)
    return out.astype(query.dtype).reshape(shape)


def _by_key(scale: Float[Array, "*batch kv_heads keys 1"]) -> Float[Array, "*batch kv_heads 1 1 keys"]:
    return scale.swapaxes(-1, -2)[..., None, :]


def causal_mask(
    queries: Int[Array, "#batch queries"], keys: Int[Array, "#batch keys"]
) -> Bool[Array, "#batch queries keys"]:
    """True where the key's position is not after the query's."""
    return queries[:, :, None] >= keys[:, None, :]


def within(
    mask: Bool[Array, "#batch queries keys"],
    queries: Int[Array, "#batch queries"],
    keys: Int[Array, "#batch keys"],
    window: int | Int[Array, ""],
) -> Bool[Array, "#batch queries keys"]:
    """`mask` narrowed to the last `window` positions up to the query; 0 leaves it as it is."""
    distance = queries[:, :, None] - keys[:, None, :]
    return mask & ((window == 0) | (distance < window))
