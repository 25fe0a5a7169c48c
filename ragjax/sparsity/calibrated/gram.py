"""X'X of a matrix's inputs: what a change of the matrix does to its outputs is told by it alone.

It is symmetric. On CPU little more than the half above the diagonal is summed up, in place, by a kernel or by
products of ever smaller parts, and the other half is copied from it at the end. TPU and GPU compile the plain
product, and so do several devices together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.models.products import plus_upper_gram, transposed
from ragjax.parallel.pin import several_devices

_WIDEST = 256
"""Columns of X that CPU multiplies with themselves: smaller ones save more of the half, but run slower."""


def gram(x: Float[Array, "*tokens in"]) -> Float[Array, "in in"]:
    """X'X, summed over all tokens in float32.

    Args:
      x: inputs of a matrix, one row a token. Tokens that are split over devices are summed over them.
    """
    return whole(with_gram(jnp.zeros((x.shape[-1], x.shape[-1]), jnp.float32), x))


def with_gram(total: Float[Array, "in in"], x: Float[Array, "*tokens in"]) -> Float[Array, "in in"]:
    """A sum and X'X, of which only the entries above the diagonal and on it are to be read.

    Args:
      total: the sum so far; where it is donated, it is added to in place.
      x: as in `gram`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if several_devices():
        return total + _product(rows, rows)
    return plus_upper_gram(total, rows, _by_xla)


def _by_xla(total: Float[Array, "in in"], x: Float[Array, "tokens in"]) -> Float[Array, "in in"]:
    return jax.lax.platform_dependent(
        total, x, cpu=_with_half, default=lambda total, x: total + _product(x, x)
    )


def whole(total: Float[Array, "in in"]) -> Float[Array, "in in"]:
    """A sum from `with_gram`, all entries of which may be read.

    Args:
      total: the sum; where it is donated, it is completed in place.
    """
    if several_devices():
        return total
    return jax.lax.platform_dependent(total, cpu=_mirrored, default=lambda total: total)


def _half(width: int) -> int:
    """Half of so many columns; 0 where they are not halved any more."""
    return 0 if width <= _WIDEST or width % 2 else width // 2


def _with_half(total: Float[Array, "in in"], x: Float[Array, "tokens in"], first: int = 0) -> Array:
    """Adds X'X where rows and columns begin at `first`."""
    half = _half(x.shape[-1])
    if not half:
        return _with_block(total, _product(x, x), first, first)
    left, right, middle = x[:, :half], x[:, half:], first + half
    total = _with_half(_with_half(total, left, first), right, middle)
    return _with_block(total, _product(left, right), first, middle)


def _with_block(total: Array, block: Float[Array, "n m"], row: int, column: int) -> Array:
    before = jax.lax.dynamic_slice(total, (row, column), block.shape)
    return jax.lax.dynamic_update_slice(total, before + block, (row, column))


def _mirrored(total: Float[Array, "in in"], first: int = 0, width: int | None = None) -> Array:
    """Copies what lies above the diagonal, in `width` rows and columns from `first`, to below it."""
    width = total.shape[0] if width is None else width
    half = _half(width)
    if not half:
        block = jax.lax.dynamic_slice(total, (first, first), (width, width))
        block = jnp.where(jnp.tri(width, k=-1, dtype=bool), block.T, block)
        return jax.lax.dynamic_update_slice(total, block, (first, first))
    middle = first + half
    total = _mirrored(_mirrored(total, first, half), middle, half)
    across = jax.lax.dynamic_slice(total, (first, middle), (half, half))
    return jax.lax.dynamic_update_slice(total, across.T, (middle, first))


def _product(x: Float[Array, "tokens n"], y: Float[Array, "tokens m"]) -> Float[Array, "n m"]:
    return jnp.matmul(
        transposed(x), y, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )
