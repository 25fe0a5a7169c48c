"""Rows of a table."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from ragjax.parallel.pin import on_one_device

_FEW = 16
"""Rows up to which slices are taken: those of a decoding step."""


def rows_of(
    table: Shaped[Array, "places *features"], places: Int[Array, "*batch"]
) -> Shaped[Array, "*batch *features"]:
    """`table[places]`, of places none of which is negative.

    XLA's CPU backend holds a lookup for a reading of the whole table, and shares out even a few rows among
    threads that it has to wake; slices it makes where it is.
    """
    known = not any(map(jax.export.is_symbolic_dim, places.shape))
    few = known and 0 < math.prod(places.shape) <= _FEW
    if not few or jax.default_backend() != "cpu" or not on_one_device(table, places):
        return table[places]
    rows = [jax.lax.dynamic_slice_in_dim(table, place, 1) for place in places.reshape(-1)]
    return jnp.concatenate(rows).reshape(*places.shape, *table.shape[1:])
