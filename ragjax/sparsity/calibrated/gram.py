"""X'X of a matrix's inputs: what a change of the matrix does to its outputs is told by it alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.models.matmul import transposed

_WIDEST = 512
"""Columns of X that CPU multiplies at once: smaller products save more of the half, but run slower."""


def gram(x: Float[Array, "*tokens in"]) -> Float[Array, "in in"]:
    """X'X, summed over all tokens in float32.

    It is symmetric, and CPU computes little more than half of it. TPU and GPU compile the plain product.

    Args:
      x: inputs of a matrix, one row a token. Tokens that are split over devices are summed over them.
    """
    rows = x.reshape(-1, x.shape[-1])
    return jax.lax.platform_dependent(rows, cpu=_in_halves, default=lambda x: _product(x, x))


def _in_halves(x: Float[Array, "tokens in"]) -> Float[Array, "in in"]:
    width = x.shape[-1]
    if width <= _WIDEST or width % 2:
        return _product(x, x)
    left, right = x[:, : width // 2], x[:, width // 2 :]
    across = _product(left, right)
    return jnp.block([[_in_halves(left), across], [across.T, _in_halves(right)]])


def _product(x: Float[Array, "tokens n"], y: Float[Array, "tokens m"]) -> Float[Array, "n m"]:
    return jnp.matmul(
        transposed(x), y, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )
