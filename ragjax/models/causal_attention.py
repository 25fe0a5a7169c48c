"""Causal self-attention that keeps no scores for the backward pass.

The forward pass saves the logarithm of each row's sum; the backward pass makes the scores again from it
(Dao et al., "FlashAttention", https://arxiv.org/abs/2205.14135). On CPU the queries are taken in blocks,
each of which reads only the keys up to its own end, and a few heads at a time, whose scores stay in cache; or
a kernel does so, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ragjax.kernels.causal import causal_backward, causal_forward, causal_serves
from ragjax.kernels.instead import by_kernel
from ragjax.models.divisor import largest_divisor
from ragjax.models.products import transposed
from ragjax.models.residuals import keep, kept
from ragjax.parallel.pin import on_one_device, several_devices

_SMALLEST_BLOCK, _MOST_BLOCKS = 128, 8
_MOST_SCORES, _SCORES_AT_ONCE = 2**23, 2**20
"""More scores than the first, 32 MB, are not made at once, but about as many at a time as the second: 4 MB
stay in a CPU's cache."""
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
    scale, heads = jnp.asarray(scale, jnp.float32), (query, key, value)
    batch, length, _, head = query.shape
    exact = all(x.dtype == jnp.float32 for x in heads)
    if exact and causal_serves(batch, length, head) and on_one_device(*heads):
        return _attend_in_place(*heads, mask, scale)
    return _swapped(_attend(*map(_swapped, heads), mask, scale))


def _swapped(x: Array) -> Array:
    """Heads before rows where they were behind them, and the other way round."""
    return x.swapaxes(1, 2)


class _Heads(NamedTuple):
    query: Float[Array, "batch heads seq head"]
    key: Float[Array, "batch heads seq head"]
    value: Float[Array, "batch heads seq head"]


class _Made(NamedTuple):
    out: Float[Array, "batch heads seq head"]
    log_sum: Float[Array, "batch heads seq 1"]


_Mask: TypeAlias = Bool[Array, "#batch seq seq"]
_Function: TypeAlias = Callable[..., PyTree[Array]]
"""From arrays of heads [batch, heads, ...], a mask, a scale and the size of a block, to arrays of heads."""


@jax.custom_vjp
def _attend(query, key, value, mask, scale):
    return _forward(query, key, value, mask, scale)[0]


def _forward(query, key, value, mask, scale):
    out, log_sum = _by_platform(_forward_in_blocks, (_Heads(query, key, value),), mask, scale)
    return out, (_Heads(keep(query), keep(key), keep(value)), _Made(keep(out), log_sum), mask, scale)


def _backward(saved, gradient):
    heads, made, mask, scale = saved
    heads = _Heads(*(kept(x, gradient.dtype) for x in heads))
    made = made._replace(out=kept(made.out, gradient.dtype))
    return *_by_platform(_backward_in_blocks, (heads, made, gradient), mask, scale), None, None


_attend.defvjp(_forward, _backward)


@jax.custom_vjp
def _attend_in_place(query, key, value, mask, scale):
    """By a kernel where this runs on CPU, which reads heads where they are."""
    return _forward_in_place(query, key, value, mask, scale)[0]


def _forward_in_place(*given):
    out, log_sum = by_kernel(causal_forward, _forward_swapped, *given)
    return out, (*given, out, log_sum)


def _backward_in_place(saved, gradient):
    return *by_kernel(_backward_by_kernel, _backward_swapped, *saved, gradient), None, None


_attend_in_place.defvjp(_forward_in_place, _backward_in_place)


def _backward_by_kernel(query, key, value, mask, scale, out, log_sum, gradient):
    shared = _swapped((gradient * out).sum(-1))
    return causal_backward(query, key, value, gradient, log_sum, shared, mask, scale)


def _forward_swapped(query, key, value, mask, scale):
    heads = _Heads(*map(_swapped, (query, key, value)))
    made = _forward_in_blocks(heads, mask, scale, block=query.shape[1])
    return _swapped(made.out), made.log_sum[..., 0]


def _backward_swapped(query, key, value, mask, scale, out, log_sum, gradient):
    heads, made = _Heads(*map(_swapped, (query, key, value))), _Made(_swapped(out), log_sum[..., None])
    gradients = _backward_in_blocks(heads, made, _swapped(gradient), mask, scale, block=query.shape[1])
    return tuple(map(_swapped, gradients))


def _by_platform(function: _Function, heads: PyTree[Array], mask: _Mask, scale: Array) -> PyTree[Array]:
    length = jax.tree.leaves(heads)[0].shape[2]
    if jax.export.is_symbolic_dim(length):
        # A program for every length has no number of blocks.
        return function(*heads, mask, scale, block=length)
    block = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
    return jax.lax.platform_dependent(
        heads,
        mask,
        scale,
        cpu=partial(_few_at_a_time, function, block=block),
        default=lambda heads, mask, scale: function(*heads, mask, scale, block=length),
    )


def _few_at_a_time(
    function: _Function, heads: PyTree[Array], mask: _Mask, scale: Array, *, block: int
) -> PyTree[Array]:
    """The function of all heads; where these have many scores, of a few heads at a time.

    One after the other they also work in the same memory: XLA gives every score of one program a place of
    its own, and the kernel hands it out anew at each call. Over several devices, all at once.
    """
    batch, count, length = jax.tree.leaves(heads)[0].shape[:3]
    if several_devices() or batch * count * length**2 <= _MOST_SCORES:
        return function(*heads, mask, scale, block=block)
    together = largest_divisor(count, _SCORES_AT_ONCE // length**2)
    rows = largest_divisor(batch, _SCORES_AT_ONCE // (count * length**2))

    def some_rows(heads: PyTree[Array], mask: _Mask) -> PyTree[Array]:
        return _mapped(lambda heads: function(*heads, mask, scale, block=block), heads, together, axis=1)

    if mask.shape[0] == 1:
        return _mapped(lambda heads: some_rows(heads, mask), heads, rows, axis=0)
    return _mapped(lambda given: some_rows(*given), (heads, mask), rows, axis=0)


def _mapped(
    function: Callable[[PyTree[Array]], PyTree[Array]], given: PyTree[Array], size: int, axis: int
) -> PyTree[Array]:
    """The function of `size` entries of an axis after the other, put together again."""
    count = jax.tree.leaves(given)[0].shape[axis]
    if size == count:
        return function(given)

    def apart(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count // size, size, *x.shape[axis + 1 :]), axis, 0)

    def whole(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], count, *x.shape[axis + 2 :])

    return jax.tree.map(whole, jax.lax.map(function, jax.tree.map(apart, given)))


def _blocks(length: int, block: int) -> list[tuple[slice, slice]]:
    """Queries of each block, and the keys they may see."""
    if block == length:
        return [(slice(None), slice(None))]
    starts = range(0, length, block)
    return [(slice(start, end), slice(end)) for start in starts for end in [min(start + block, length)]]


def _scores(query, key, mask, scale):
    scores = jnp.matmul(query, transposed(key), preferred_element_type=jnp.float32) * scale
    return jnp.where(mask[:, None], scores, -jnp.inf)


def _forward_in_blocks(heads: _Heads, mask: _Mask, scale: Array, *, block: int) -> _Made:
    query, key, value = heads
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
    return _Made(jnp.concatenate(outs, 2), jnp.concatenate(log_sums, 2))


def _backward_in_blocks(
    heads: _Heads, made: _Made, gradient: Array, mask: _Mask, scale: Array, *, block: int
) -> _Heads:
    query, key, value = heads
    out, log_sum = made
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
    return _Heads(
        jnp.concatenate(dquery, 2).astype(query.dtype),
        dkey.astype(key.dtype),
        dvalue.astype(value.dtype),
    )


def _added(left, right, length):
    """left @ right for the keys a block sees, 0 for those after them."""
    product = jnp.matmul(left, right, preferred_element_type=jnp.float32)
    return jnp.pad(product, [(0, 0), (0, 0), (0, length - product.shape[2]), (0, 0)])
