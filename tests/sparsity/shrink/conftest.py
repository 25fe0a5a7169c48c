"""A tiny model of every kind of block, each parameter of which matters."""

import numpy as np
import pytest

from ragjax.model import Model


@pytest.fixture(scope="session")
def kin(kind, of_kind, random_model) -> Model:
    """A model of each family."""
    return random_model(of_kind(kind), seed=1)


@pytest.fixture(scope="session")
def gpt2(of_kind, random_model) -> Model:
    return random_model(of_kind("gpt2"), seed=1)


@pytest.fixture(scope="session")
def grouped(of_kind, random_model) -> Model:
    """A Llama, whose heads share keys and values."""
    return random_model(of_kind("llama"), seed=1)


@pytest.fixture(scope="session")
def text() -> np.ndarray:
    """Two microbatches of three sequences."""
    return np.random.default_rng(0).integers(0, 50, (2, 3, 16))
