"""A tiny model of every kind of block, each parameter of which matters."""

import dataclasses

import jax
import numpy as np
import pytest

from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig, Rotary

TINY = DecoderConfig(
    vocab_size=50, positions=16, width=24, layers=3, heads=6, mlp_width=20, initializer_range=0.3
)
LLAMA = dataclasses.replace(
    TINY, kv_heads=3, rotary=Rotary(), learned_positions=False, norm="rms", gated=True, activation="silu",
    attention_bias=False, attention_out_bias=False, mlp_bias=False, tied=False,
)  # fmt: skip
KIN = {
    "gpt2": TINY,
    "gpt3": dataclasses.replace(TINY, windows=(0, 3, 5), scale_attention_by_layer=True),
    "gpt_neo": dataclasses.replace(TINY, windows=(0, 3), scale_attention=False, attention_bias=False),
    "opt": dataclasses.replace(TINY, activation="relu", position_offset=2),
    "opt-350m": dataclasses.replace(
        TINY, residual="post_norm", final_norm=False, embedding_width=10, activation="relu", position_offset=2
    ),
    "gpt_neox": dataclasses.replace(
        TINY, residual="parallel", rotary=Rotary(width=2), learned_positions=False, tied=False
    ),
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, tied=True, windows=(0, 4, 4)),
}  # fmt: skip


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


@pytest.fixture(scope="session", params=KIN)
def kin(request) -> Model:
    """A model of each family."""
    return everything_matters(KIN[request.param])


@pytest.fixture(scope="session")
def gpt2() -> Model:
    return everything_matters(KIN["gpt2"])


@pytest.fixture(scope="session")
def grouped() -> Model:
    """A Llama, whose heads share keys and values."""
    return everything_matters(KIN["llama"])


@pytest.fixture(scope="session")
def text() -> np.ndarray:
    """Two microbatches of three sequences."""
    return np.random.default_rng(0).integers(0, 50, (2, 3, 16))
