"""The one matrix product every layer uses, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float

from ragjax.models.products import product, product_with_transposed, weight_gradient
from ragjax.models.residuals import keep, kept


def matmul(x: Float[Array, "... n"], kernel: Float[Array, "n m"]) -> Float[Array, "... m"]:
    """`x @ kernel`, accumulated in float32 and returned in the type of `x`.

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
    out = product(activation(x), kernel.astype(x.dtype))
    return (out if bias is None else out + bias).astype(x.dtype)


def _forward(x, kernel, bias, activation):
    return linear(x, kernel, bias, activation), (keep(x), kernel, bias)


def _backward(activation, saved, gradient):
    bits, kernel, bias = saved
    active, pull = jax.vjp(activation, kept(bits, gradient.dtype))
    dx = product_with_transposed(gradient, kernel.astype(gradient.dtype))
    columns = gradient.reshape(-1, gradient.shape[-1])
    dkernel = weight_gradient(active.reshape(-1, active.shape[-1]), columns).astype(kernel.dtype)
    dbias = None if bias is None else columns.astype(bias.dtype).sum(0)
    return *pull(dx.astype(gradient.dtype)), dkernel, dbias


linear.defvjp(_forward, _backward)
