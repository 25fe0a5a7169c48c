"""The large products of training and calibration, and what XLA's backends need to run them fast.

On XLA's CPU backend a bfloat16 product runs at float32 speed unless it is asked for a float32 result and
finds both factors row by row in memory, and a float32 one is slower than one by blocks. Both are seen to
here; TPU and GPU compile the plain product, and so do several devices, where a mesh is in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.kernels.blocks import blocks_serve, multiply_blocks
from ragjax.kernels.instead import by_kernel
from ragjax.parallel.pin import on_one_device


def product(x: Float[Array, "... n"], y: Float[Array, "n m"]) -> Float[Array, "... m"]:
    """`x @ y` in float32.

    Args:
      x: activations.
      y: weights in the type of `x`.
    """

    def plain(x, y):
        return jnp.dot(x, y, preferred_element_type=jnp.float32)

    return _fastest(multiply_blocks, plain, x, y, serves=blocks_serve(_rows(x), *y.shape))


def product_with_transposed(
    x: Float[Array, "... m"], y: Float[Array, "n m"], *, rewritten: bool = True
) -> Float[Array, "... n"]:
    """`x @ y.T` in float32.

    Args:
      x: gradients of what was multiplied with y, or hidden states where y is a table of tokens.
      y: weights in the type of `x`.
      rewritten: whether a y of 16 bits may be written out anew, which pays where x has many rows.
    """

    def plain(x, y):
        if rewritten:
            return jnp.dot(x, transposed(y), preferred_element_type=jnp.float32)
        return jnp.einsum("...m,nm->...n", x, y, preferred_element_type=jnp.float32)

    def by_blocks(x, y):
        return multiply_blocks(x, y, y_transposed=True)

    serves = blocks_serve(_rows(x), *y.shape[::-1], y_transposed=True)
    return _fastest(by_blocks, plain, x, y, serves=serves)


def weight_gradient(
    x: Float[Array, "*shards rows n"], gradient: Float[Array, "*shards rows m"]
) -> Float[Array, "*shards n m"]:
    """x'g in float32, for each shard apart.

    Args:
      x: what a weight was multiplied with.
      gradient: gradient of that product.
    """

    def plain(x, gradient):
        return jnp.matmul(transposed(x), gradient, preferred_element_type=jnp.float32)

    def by_blocks(x, gradient):
        return multiply_blocks(x, gradient, x_transposed=True)

    if x.ndim > 2:
        return plain(x, gradient)
    return _fastest(by_blocks, plain, x, gradient, serves=blocks_serve(x.shape[1], *gradient.shape))


def plus_weight_gradient(
    sums: Float[Array, "n m"],
    x: Float[Array, "rows n"],
    gradient: Float[Array, "rows m"],
    plain: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> Float[Array, "n m"]:
    """`sums + x'g` in float32, in place where nothing else reads the sums.

    Args:
      sums: float32.
      x: what a weight was multiplied with.
      gradient: gradient of that product.
      plain: the same of XLA's products, for where there are no blocks.
    """

    def by_blocks(sums, x, gradient):
        return multiply_blocks(x, gradient, x_transposed=True, onto=sums)

    serves = blocks_serve(x.shape[1], *gradient.shape)
    return _fastest(by_blocks, plain, sums, x, gradient, serves=serves)


def plus_upper_gram(
    sums: Float[Array, "n n"], x: Float[Array, "rows n"], plain: Callable[[jax.Array, jax.Array], jax.Array]
) -> Float[Array, "n n"]:
    """`sums + x'x` in float32, in place where nothing else reads the sums; below the diagonal anything.

    Args:
      sums: float32.
      x: rows whose products are summed.
      plain: the same of XLA's products, for where there are no blocks.
    """

    def by_blocks(sums, x):
        return multiply_blocks(x, x, x_transposed=True, onto=sums, upper=True)

    return _fastest(by_blocks, plain, sums, x, serves=blocks_serve(x.shape[1], *x.shape))


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


def _rows(x: jax.Array) -> int:
    return math.prod(x.shape[:-1])


def _fastest(
    by_blocks: Callable[..., jax.Array],
    plain: Callable[..., jax.Array],
    *factors: jax.Array,
    serves: bool,
) -> jax.Array:
    """A product by blocks, where they serve and all is whole and of float32; else what XLA makes of it."""
    if serves and all(x.dtype == jnp.float32 for x in factors) and on_one_device(*factors):
        return by_kernel(by_blocks, plain, *factors)
    return plain(*factors)
