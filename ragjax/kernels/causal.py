"""Attention to the keys up to a query's own, as training has it, and its backward pass.

XLA's CPU backend makes batched products and a softmax of it, each over all scores. Here a block of scores is
made, used, and forgotten before the next one (Dao et al., "FlashAttention", https://arxiv.org/abs/2205.14135),
and the heads stay where the layer has put them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ragjax.kernels.calls import custom_call
from ragjax.kernels.causal_text import backward_text, forward_text
from ragjax.kernels.machine import Vectors, kernels_serve, vectors
from ragjax.kernels.panels_text import panel_width

_WIDEST = 128
"""Head whose blocks are kept on a thread's stack."""

Heads = Float[Array, "batch seq heads head"]
Numbers = Float[Array, "batch heads seq"]


def causal_serves(batch: int, length: int, head: int) -> bool:
    """Whether there is such a kernel for so many sequences and tokens, and heads of this width.

    Not in a program for every number of any of them: that is made to be taken elsewhere.
    """
    if not kernels_serve() or any(map(jax.export.is_symbolic_dim, (batch, length, head))):
        return False
    width = panel_width(vectors())
    return head <= _WIDEST and head % width == length % width == 0


def causal_forward(
    query: Heads, key: Heads, value: Heads, mask: Bool[Array, "#batch seq seq"], scale: Float[Array, ""]
) -> tuple[Heads, Numbers]:
    """softmax(scale * QK' + mask) V, 0 where a query may see nothing, and the logarithm of each row's sum.

    Args:
      query: float32.
      key: float32.
      value: float32.
      mask: True where a query may see a key; never where the key comes after the query.
      scale: multiplies the scores.
    """
    _check(query, (key, value), (), mask)
    batch, length, heads, _ = query.shape
    numbers = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    if not query.size:
        return query, jnp.zeros(numbers.shape, numbers.dtype)
    results = jax.ShapeDtypeStruct(query.shape, jnp.float32), numbers, numbers
    call = _called("forward", forward_text, query.shape[3], results)
    out, highest, total = call(mask, scale.astype(jnp.float32), query, key, value)
    return out, highest + jnp.log(total)


def causal_backward(
    query: Heads,
    key: Heads,
    value: Heads,
    gradient: Heads,
    log_sum: Numbers,
    shared: Numbers,
    mask: Bool[Array, "#batch seq seq"],
    scale: Float[Array, ""],
) -> tuple[Heads, Heads, Heads]:
    """The gradients of query, key and value.

    Args:
      query: float32.
      key: float32.
      value: float32.
      gradient: of what `causal_forward` gave, float32.
      log_sum: as `causal_forward` gave it.
      shared: of each query the sum over keys of weight times its gradient, which the softmax takes off.
      mask: as `causal_forward` was given it.
      scale: multiplies the scores.
    """
    _check(query, (key, value, gradient), (log_sum, shared), mask)
    if not query.size:
        return query, key, value
    results = (jax.ShapeDtypeStruct(query.shape, jnp.float32),) * 3
    call = _called("backward", backward_text, query.shape[3], results)
    gradients = call(mask, scale.astype(jnp.float32), query, key, value, gradient, log_sum, shared)
    return gradients[0], gradients[1], gradients[2]


def _check(query: Heads, others: tuple[Heads, ...], numbers: tuple[Numbers, ...], mask: jax.Array) -> None:
    """Machine code takes what it is given at its word."""
    batch, length, heads, head = query.shape
    assert causal_serves(batch, length, head)
    assert all(x.shape == query.shape for x in others)
    assert all(x.shape == (batch, heads, length) for x in numbers)
    assert all(x.dtype == jnp.float32 for x in (query, *others, *numbers))
    assert mask.dtype == bool
    assert mask.shape in ((1, length, length), (batch, length, length))


def _called(
    name: str,
    text: Callable[[int, Vectors], str],
    head: int,
    results: tuple[jax.ShapeDtypeStruct, ...],
) -> Callable[..., Sequence[jax.Array]]:
    kind = vectors()
    target = f"ragjax_causal_{name}_{head}_{kind.lanes}_{kind.registers}"
    made = custom_call(target, partial(text, head, kind), improve=False)
    return jax.ffi.ffi_call(made, results, vmap_method="sequential")
