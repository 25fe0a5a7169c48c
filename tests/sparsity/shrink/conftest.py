"""A tiny model of every kind of block, each parameter of which matters."""

import jax
import numpy as np
import pytest

from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig


def everything_matters(config: DecoderConfig) -> Model:
    """A random model whose biases and norms are far from what they begin with."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_params(config, seed=0))
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    for norm in (
        params["layers"]["attention_norm"],
        params["layers"]["mlp_norm"],
        params.get("final_norm", {}),
    ):
        norm.update({name: leaf + 1 for name, leaf in norm.items() if name == "scale"})
    params["embedding"]["tokens"][config.vocab_size :] = 0
    if not config.tied:
        params["head"][config.vocab_size :] = 0
    return Model(config, params)


@pytest.fixture(scope="session")
def kin(kind, of_kind) -> Model:
    """A model of each family."""
    return everything_matters(of_kind(kind))


@pytest.fixture(scope="session")
def gpt2(of_kind) -> Model:
    return everything_matters(of_kind("gpt2"))


@pytest.fixture(scope="session")
def grouped(of_kind) -> Model:
    """A Llama, whose heads share keys and values."""
    return everything_matters(of_kind("llama"))


@pytest.fixture(scope="session")
def text() -> np.ndarray:
    """Two microbatches of three sequences."""
    return np.random.default_rng(0).integers(0, 50, (2, 3, 16))
