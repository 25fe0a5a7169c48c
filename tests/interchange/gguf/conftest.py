"""Small models of every GGUF architecture, every parameter of which matters."""

from dataclasses import replace

import pytest

from ragjax.data import train_tokenizer
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig, Rotary, RotaryScaling

TEXTS = ["It's 3 o'clock, naïve café 漢字 🙂\n\n  x = 12,345\tthe theatre that they'd seen\r\n"] * 3

SHAPE = {"vocab_size": 300, "positions": 64, "width": 32, "layers": 2, "heads": 4}
BLOCK = {
    **SHAPE, "kv_heads": 2, "mlp_width": 64, "learned_positions": False, "norm": "rms", "gated": True,
    "activation": "silu", "attention_bias": False, "attention_out_bias": False, "mlp_bias": False,
}  # fmt: skip
LLAMA3 = RotaryScaling("llama3", 8.0)

CONFIGS = {
    "gpt2": DecoderConfig(**SHAPE, mlp_width=128, bos_token=256, eos_token=256),
    "gpt2_untied_odd": DecoderConfig(**SHAPE, mlp_width=36, tied=False, norm_epsilon=1e-6, eos_token=3),
    "llama": DecoderConfig(**BLOCK, rotary=Rotary(), norm_epsilon=1e-6, bos_token=1, eos_token=(2, 5)),
    "llama_untied_wide": DecoderConfig(**BLOCK, rotary=Rotary(5e4), tied=False, head_size=16),
    "llama_biases": DecoderConfig(
        **{**BLOCK, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True}, rotary=Rotary()
    ),
    "llama3": DecoderConfig(**BLOCK, rotary=Rotary(5e5, None, LLAMA3)),
    "llama_linear": DecoderConfig(**BLOCK, rotary=Rotary(1e4, None, RotaryScaling("linear", 4.0))),
    "qwen2": DecoderConfig(**{**BLOCK, "attention_bias": True}, rotary=Rotary(1e6)),
}


@pytest.fixture(scope="session", params=CONFIGS)
def gguf_model(request, random_model) -> Model:
    """A model without a tokenizer, of each architecture in turn."""
    return random_model(CONFIGS[request.param], spread=0.2)


@pytest.fixture(scope="session")
def gguf_named(random_model):
    """The same by name: "gpt2", "llama", "qwen2", ..."""
    return lambda name, **fields: random_model(replace(CONFIGS[name], **fields), spread=0.2)


@pytest.fixture(scope="session")
def word_tokenizer():
    """A byte-level BPE of GPT-2's kind with a few merges; <|endoftext|> is its last token."""
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="session")
def word_model(word_tokenizer, random_model) -> Model:
    """A random GPT-2 over `word_tokenizer`."""
    size = len(word_tokenizer)
    config = DecoderConfig(
        **{**SHAPE, "vocab_size": size}, mlp_width=128, bos_token=size - 1, eos_token=size - 1
    )
    return random_model(config, spread=0.2, tokenizer=word_tokenizer)
