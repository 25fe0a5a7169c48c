"""How fast the machine reads its memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp


class Reader:
    """A float32 matrix larger than caches, read from end to end by a product with a vector.

    A product with a vector is what decoding consists of, and reads as fast as anything that XLA compiles.
    """

    def __init__(self, side: int = 8192):
        """Fills a matrix of side x side values, 268 MB by default, and compiles the product."""
        self._matrix, self._vector = jnp.ones((side, side)), jnp.ones(side)
        self._product = jax.jit(jnp.dot)
        self.bytes = self._matrix.nbytes
        self.read()

    def read(self) -> None:
        """Reads it once."""
        self._product(self._matrix, self._vector).block_until_ready()
