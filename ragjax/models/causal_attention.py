"""Causal self-attention that keeps no scores for the backward pass.

The forward pass saves the logarithm of each row's sum; the backward pass makes the scores again from it
(Dao et al., "FlashAttention", https://arxiv.org/abs/2205.14135). On CPU the queries are taken in blocks,
and each block reads only the keys up to its own end.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ragjax.models.matmul import transposed
from ragjax.models.residuals import keep, kept

_SMALLEST_BLOCK, _MOST_BLOCKS = 128, 8
_LOWEST = -1e30


def causal_attend(
    query: Float[Array, "batch seq heads head"],
    key: Float[Array, "batch seq heads head"],
    value: Float[Array, "batch seq heads head"],
    *,
    mask: Bool[Array, "#batch seq seq"],
    scale: float | Float[Array, ""],
) -> Float[Array, "batch seq heads head"]:
    """softmax(scale * QK' + mask) V, the softmax in float32; 0 where a query may see no key.

    Args:
      mask: True where a query may see a key; never where the key comes after the query.
      scale: multiplies the scores; gets no gradient.
    """
    by_head = (x.swapaxes(1, 2) for x in (query, key, value))
    return _attend(*by_head, mask, jnp.asarray(scale, jnp.float32)).swapaxes(1, 2)


class _Saved(NamedTuple):
    query: Float[Array, "batch heads seq head"]
    key: Float[Array, "batch heads seq head"]
    value: Float[Array, "batch heads seq head"]
    mask: Bool[Array, "#batch seq seq"]
    scale: Float[Array, ""]
    out: Float[Array, "batch heads seq head"]
    log_sum: Float[Array, "batch heads seq 1"]


@jax.custom_vjp
def _attend(query, key, value, mask, scale):
    return _forward(query, key, value, mask, scale)[0]


def _forward(*inputs):
    out, log_sum = _by_platform(_forward_in_blocks, *inputs)
    query, key, value, mask, scale = inputs
    return out, _Saved(keep(query), keep(key), keep(value), mask, scale, keep(out), log_sum)


def _backward(saved: _Saved, gradient):
    heads = {name: kept(getattr(saved, name), gradient.dtype) for name in ("query", "key", "value", "out")}
    saved = saved._replace(**heads)
    return *_by_platform(_backward_in_blocks, saved, gradient), None, None


_attend.defvjp(_forward, _backward)


def _by_platform(function, *arguments):
    length = jax.tree.leaves(arguments)[0].shape[2]
    if jax.export.is_symbolic_dim(length):
        # A program for every length has no number of blocks.
        return function(*arguments, block=length)
    block = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
    return jax.lax.platform_dependent(
        *arguments, cpu=partial(function, block=block), default=partial(function, block=length)
    )


def _blocks(length: int, block: int) -> list[tuple[slice, slice]]:
    """Queries of each block, and the keys they may see."""
    if block == length:
        return [(slice(None), slice(None))]
    starts = range(0, length, block)
    return [(slice(start, end), slice(end)) for start in starts for end in [min(start + block, length)]]


def _scores(query, key, mask, scale):
    scores = jnp.matmul(query, transposed(key), preferred_element_type=jnp.float32) * scale
    return jnp.where(mask[:, None], scores, -jnp.inf)


def _forward_in_blocks(query, key, value, mask, scale, *, block):
    outs, log_sums = [], []
    for rows, seen in _blocks(query.shape[2], block):
        scores = _scores(query[:, :, rows], key[:, :, seen], mask[:, rows, seen], scale)
        # Finite where a row sees nothing, so that its weights are 0.
        highest = jnp.maximum(scores.max(-1, keepdims=True), _LOWEST)
        weights = jnp.exp(scores - highest)
        total = jnp.maximum(weights.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        mixed = jnp.matmul(weights.astype(value.dtype), value[:, :, seen], preferred_element_type=jnp.float32)
        outs.append((mixed / total).astype(value.dtype))
        log_sums.append(highest + jnp.log(total))
    return jnp.concatenate(outs, 2), jnp.concatenate(log_sums, 2)


def _backward_in_blocks(saved: _Saved, gradient, *, block):
    query, key, value, mask, scale, out, log_sum = saved
    # The sum over keys of weight times its gradient, which the softmax takes off.
    shared = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    dquery, dkey, dvalue = [], jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    for rows, seen in _blocks(query.shape[2], block):
        scores = _scores(query[:, :, rows], key[:, :, seen], mask[:, rows, seen], scale)
        weights = jnp.exp(scores - log_sum[:, :, rows])
        dweights = jnp.matmul(
            gradient[:, :, rows], transposed(value[:, :, seen]), preferred_element_type=jnp.float32
        )
        dscores = (weights * (dweights - shared[:, :, rows]) * scale).astype(query.dtype)
        dquery.append(jnp.matmul(dscores, key[:, :, seen], preferred_element_type=jnp.float32))
        dkey += _added(transposed(dscores), query[:, :, rows], key.shape[2])
        dvalue += _added(transposed(weights.astype(value.dtype)), gradient[:, :, rows], key.shape[2])
    return (
        jnp.concatenate(dquery, 2).astype(query.dtype),
        dkey.astype(key.dtype),
        dvalue.astype(value.dtype),
    )


def _added(left, right, length):
    """left @ right for the keys a block sees, 0 for those after them."""
    product = jnp.matmul(left, right, preferred_element_type=jnp.float32)
    return jnp.pad(product, [(0, 0), (0, 0), (0, length - product.shape[2]), (0, 0)])
