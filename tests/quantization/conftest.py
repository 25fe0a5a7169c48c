"""Quantized models to run."""

import jax
import pytest

from ragjax.config import Quantize
from ragjax.model import Model
from ragjax.quantizing import quantize


@pytest.fixture(scope="session")
def small(tiny_model) -> Model:
    """The tiny model in 4 bits, its table of tokens in 8."""
    return quantize(tiny_model, Quantize(scheme="int4", tables="int8")).model


@pytest.fixture(scope="session")
def same():
    """Whether two trees are of one structure and hold the same bits."""

    def compare(one, other) -> bool:
        if jax.tree.structure(one) != jax.tree.structure(other):
            return False
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return all(a.dtype == b.dtype and a.shape == b.shape and (a == b).all() for a, b in pairs)

    return compare
