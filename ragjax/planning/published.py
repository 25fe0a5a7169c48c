"""The shape of a model by its name or its config.json, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragjax.errors import InputError
from ragjax.interchange.families import family_of
from ragjax.interchange.json_file import read_object
from ragjax.interchange.resolve import resolve
from ragjax.models.decoder_config import DecoderConfig


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": width, "n_layer": layers,
        "n_head": heads, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    }  # fmt: skip


def _opt(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * width,
        "word_embed_proj_dim": width, "activation_function": "relu", "do_layer_norm_before": True,
        "bos_token_id": 2, "eos_token_id": 2,
    }  # fmt: skip


PUBLISHED: dict[str, dict[str, Any]] = {
    "distilgpt2": _gpt2(6, 768, 12),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "opt-125m": _opt(12, 768, 12),
    "opt-350m": _opt(24, 1024, 16) | {"word_embed_proj_dim": 512, "do_layer_norm_before": False},
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56),
    "opt-66b": _opt(64, 9216, 72),
    "opt-175b": _opt(96, 12288, 96),
}
"""What the config.json of models says that are known here by name, without that of their owner.

Radford et al., "Language Models are Unsupervised Multitask Learners"; Zhang et al., "OPT: Open Pre-trained
Transformer Language Models", https://arxiv.org/abs/2205.01068, table 1.
"""


def shape_of(model: str) -> DecoderConfig:
    """The architecture of a MODEL, of which nothing is downloaded.

    Args:
      model: a folder with config.json, a run folder, or a name of `PUBLISHED`, with or without its owner.

    Raises:
      InputError: nothing of the kind; says what is known.

    Example:
      >>> shape_of("facebook/opt-13b").width
      5120
    """
    if Path(model).expanduser().is_dir():
        values = read_object(resolve(model) / "config.json")
    else:
        name = model.rsplit("/", 1)[-1].lower()
        if name not in PUBLISHED:
            raise InputError(
                f"The shape of MODEL {model!r} is not known: looked for a folder of that name with "
                f"config.json, and among {', '.join(PUBLISHED)}. Nothing is downloaded here: give a folder."
            )
        values = PUBLISHED[name]
    return family_of(values).config_from(values)
