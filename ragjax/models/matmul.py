"""The one matrix product every layer uses, and what XLA's backends need to run it fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.models.residuals import keep, kept


def matmul(x: Float[Array, "... n"], kernel: Float[Array, "n m"]) -> Float[Array, "... m"]:
    """`x @ kernel`, accumulated in float32 and returned in the type of `x`.

    On XLA's CPU backend a bfloat16 product runs at float32 speed unless it is asked for a float32
    result and finds both factors row by row in memory. Both are seen to here; TPU and GPU compile
    the plain product.

    Args:
      x: activations.
      kernel: weights [inputs, outputs], cast to the type of `x`.
    """
    return linear(x, kernel, None, _identity)


def _identity(x: jax.Array) -> jax.Array:
    return x


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear(
    x: Float[Array, "... n"],
    kernel: Float[Array, "n m"],
    bias: Float[Array, " m"] | None,
    activation: Callable[[jax.Array], jax.Array] = _identity,
) -> Float[Array, "... m"]:
    """`matmul(activation(x), kernel) + bias`, rounded to the type of `x` once, at the end.

    Args:
      x: what is activated; the backward pass keeps it alone, and computes `activation(x)` again.
      kernel: weights [inputs, outputs], cast to the type of `x`.
      bias: is added in its own type; none: 0.
      activation: an elementwise function.
    """
    product = jnp.dot(activation(x), kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return (product if bias is None else product + bias).astype(x.dtype)


def _forward(x, kernel, bias, activation):
    return linear(x, kernel, bias, activation), (keep(x), kernel, bias)


def _backward(activation, saved, gradient):
    bits, kernel, bias = saved
    active, pull = jax.vjp(activation, kept(bits, gradient.dtype))
    dx = jnp.dot(gradient, transposed(kernel.astype(gradient.dtype)), preferred_element_type=jnp.float32)
    columns = gradient.reshape(-1, gradient.shape[-1])
    dkernel = weight_gradient(active.reshape(-1, active.shape[-1]), columns).astype(kernel.dtype)
    dbias = None if bias is None else columns.astype(bias.dtype).sum(0)
    return *pull(dx.astype(gradient.dtype)), dkernel, dbias


linear.defvjp(_forward, _backward)


def weight_gradient(
    x: Float[Array, "*shards rows n"], gradient: Float[Array, "*shards rows m"]
) -> Float[Array, "*shards n m"]:
    """x'g in float32, for each shard apart.

    Args:
      x: what a weight was multiplied with.
      gradient: gradient of that product.
    """
    return jnp.matmul(transposed(x), gradient, preferred_element_type=jnp.float32)


def transposed(x: Float[Array, "*lead n m"]) -> Float[Array, "*lead m n"]:
    """x', written out row by row where a product with it needs that to be fast: in 16 bits on CPU."""
    if x.dtype.itemsize != 2:
        return x.mT
    return jax.lax.platform_dependent(x, cpu=_rows_of_transposed, default=lambda x: x.mT)


def _rows_of_transposed(x: jax.Array) -> jax.Array:
    # The detour over an axis of 1 keeps XLA from folding the transpose into the product.
    # (A layout constraint would do so too, but gathers an array that is split over devices.)
    lead = x.ndim - 2
    detour = x.reshape(*x.shape[:-2], 1, *x.shape[-2:])
    return detour.transpose(*range(lead), lead + 2, lead, lead + 1).reshape(x.mT.shape)
