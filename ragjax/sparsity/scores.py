"""Scores: what makes a weight worth keeping. The lowest go first."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ragjax.models.names import path_name

Score = Callable[[PyTree[Float[Array, "..."]], Key[Array, ""]], PyTree[Float[Array, "..."]]]
"""From the prunable weights and a random key to scores of the same shapes."""


def magnitude(weights: PyTree[Float[Array, "..."]], key: Key[Array, ""]) -> PyTree[Float[Array, "..."]]:
    """|w|.

    Args:
      weights: the prunable weights.
      key: not used.

    Returns:
      Scores of the same shapes.
    """
    del key
    return jax.tree.map(jnp.abs, weights)


def random(weights: PyTree[Float[Array, "..."]], key: Key[Array, ""]) -> PyTree[Float[Array, "..."]]:
    """Uniform in [0, 1), drawn for each weight by its parameter's name and its place.

    The draw does not depend on the other parameters, nor on how the weight is sharded.

    Args:
      weights: the prunable weights.
      key: random key of this update of the masks.

    Returns:
      Scores of the same shapes.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, w: jax.random.uniform(
            jax.random.fold_in(key, np.uint32(zlib.crc32(path_name(path).encode()))), w.shape
        ),
        weights,
    )


SCORES: dict[str, Score] = {"magnitude": magnitude, "random": random}
"""Scores by their name in the config."""
