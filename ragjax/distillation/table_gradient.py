"""The gradient of the table of tokens, summed up chunk by chunk where it lies."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from ragjax.models.divisor import largest_divisor
from ragjax.models.products import plus_weight_gradient, weight_gradient
from ragjax.parallel.pin import several_devices

_ROWS, _COLUMNS = 1600, 256
"""Of a table's gradient, at most so many are added at a time."""


def plus_table_gradient(
    sums: Float[Array, "*shards vocab width"],
    gradient: Float[Array, "tokens vocab"],
    hidden: Float[Array, "tokens width"],
) -> Float[Array, "*shards vocab width"]:
    """Sums and the table's gradient from a chunk, added in place.

    Args:
      sums: float32; of each shard where there are several.
      gradient: of the loss to the scores, of the tokens of all shards one after another.
      hidden: what these scores were made of, in the type of `gradient`.
    """
    if sums.ndim == 2:
        return plus_weight_gradient(sums, gradient, hidden, _part_by_part)
    return _part_by_part(sums, *(x.reshape(sums.shape[0], -1, x.shape[-1]) for x in (gradient, hidden)))


def _part_by_part(sums: jax.Array, gradient: jax.Array, hidden: jax.Array) -> jax.Array:
    """Adds a product to a part of the sums at a time.

    On CPU a part is a few rows, whose product is still in the cache when it is added; else a few columns:
    devices may have split the rows, and a GPU wants larger products.
    """
    if several_devices():
        return _with_columns(sums, gradient, hidden)
    return jax.lax.platform_dependent(sums, gradient, hidden, cpu=_with_rows, default=_with_columns)


def _with_rows(sums: jax.Array, gradient: jax.Array, hidden: jax.Array) -> jax.Array:
    few = largest_divisor(sums.shape[-2], _ROWS)
    return _with_parts(sums, few, -2, lambda part: weight_gradient(part(gradient, -1), hidden))


def _with_columns(sums: jax.Array, gradient: jax.Array, hidden: jax.Array) -> jax.Array:
    few = largest_divisor(sums.shape[-1], _COLUMNS)
    return _with_parts(sums, few, -1, lambda part: weight_gradient(gradient, part(hidden, -1)))


def _with_parts(sums: jax.Array, few: int, axis: int, product: Callable[..., jax.Array]) -> jax.Array:
    """Adds a product to `few` entries of an axis at a time, in place; `part` cuts its factors alike."""

    def add(number, sums):
        def part(x, axis):
            return jax.lax.dynamic_slice_in_dim(x, number * few, few, axis)

        return jax.lax.dynamic_update_slice_in_dim(sums, part(sums, axis) + product(part), number * few, axis)

    return jax.lax.fori_loop(0, sums.shape[axis] // few, add, sums)
