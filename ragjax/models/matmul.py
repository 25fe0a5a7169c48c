"""The one matrix product every layer uses, and what XLA's backends need to run it fast."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x: Float[Array, "... n"], kernel: Float[Array, "n m"]) -> Float[Array, "... m"]:
    """`x @ kernel`, accumulated in float32 and returned in the type of `x`.

    A bfloat16 product that is asked for a bfloat16 result runs at float32 speed on XLA's CPU
    backend, and a weight gradient x'g leaves its fast kernel unless x' is laid out row by row.
    Both are mended here, for CPU alone; TPU and GPU compile the plain product.

    Args:
      x: activations.
      kernel: weights [inputs, outputs], cast to the type of `x`.
    """
    return _product(x, kernel.astype(x.dtype))


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    dx = _product(gradient, kernel.astype(x.dtype).T)
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    dkernel = jax.lax.platform_dependent(rows, columns, cpu=partial(_weight_gradient, row_major=True),
                                         default=partial(_weight_gradient, row_major=False))
    return dx, dkernel.astype(kernel.dtype)


def _weight_gradient(x: jax.Array, gradient: jax.Array, *, row_major: bool) -> jax.Array:
    transposed = x.T
    if row_major:
        transposed = with_layout_constraint(transposed, Layout((0, 1)))
    return jnp.dot(transposed, gradient, preferred_element_type=jnp.float32)


matmul.defvjp(_forward, _backward)
