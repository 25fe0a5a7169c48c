"""The one matrix product every layer uses, and what XLA's backends need to run it fast."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x: Float[Array, "... n"], kernel: Float[Array, "n m"]) -> Float[Array, "... m"]:
    """`x @ kernel`, accumulated in float32 and returned in the type of `x`.

    On XLA's CPU backend a bfloat16 product runs at float32 speed unless it is asked for a float32
    result and finds both factors row by row in memory. Both are seen to here; TPU and GPU compile
    the plain product.

    Args:
      x: activations.
      kernel: weights [inputs, outputs], cast to the type of `x`.
    """
    return _product(x, kernel.astype(x.dtype))


def _forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    dx = _product(gradient, transposed(kernel.astype(x.dtype)))
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return dx, weight_gradient(rows, columns).astype(kernel.dtype)


matmul.defvjp(_forward, _backward)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


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
