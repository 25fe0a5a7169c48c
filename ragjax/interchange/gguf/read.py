"""A model from a GGUF file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.sharding import Mesh

from ragjax.errors import InputError
from ragjax.interchange.gguf.architectures import architecture_of, read_config
from ragjax.interchange.gguf.head import read_head
from ragjax.interchange.gguf.tensors import GgufTensors
from ragjax.interchange.gguf.tokenizer import read_gguf_tokenizer
from ragjax.interchange.layout import read_params
from ragjax.interchange.tokenizer import check_vocabulary
from ragjax.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HISTORY = "ragjax.history"
"""Key of what was done to a model, as JSON."""


def read_gguf(path: Path, *, source: str = "", dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Model:
    """Reads a model, tensor by tensor, onto its devices; quantized weights become what they stand for.

    Args:
      path: a GGUF file.
      source: what the history calls it; none: the file's name.
      dtype: type of the parameters in memory.
      mesh: devices over which they are split; none: all on JAX's default device.

    Returns:
      The model, with its tokenizer where the file has one. Its history says of which types the file's
      tensors were.

    Raises:
      InputError: the file is damaged, of an architecture or types that are not known, or the package gguf
        is not installed.
    """
    head = read_head(path)
    architecture = architecture_of(head.metadata)
    tensors = GgufTensors(path, head)
    config = read_config(head.metadata, tensors)
    tokenizer = read_gguf_tokenizer(head.metadata)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size)
    params = read_params(tensors, architecture.layout(config), config, dtype, mesh)
    imported = {
        "did": "import",
        "source": source or path.name,
        "weights": dict(Counter(tensors.kinds.values())),
    }
    return Model(config, params, tokenizer, (*_history(head.metadata), imported))


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file.

    Raises:
      InputError: it has none, or the file is damaged.
    """
    tokenizer = read_gguf_tokenizer(read_head(path).metadata)
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer.")
    return tokenizer


def _history(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        history = json.loads(metadata.get(HISTORY, "[]"))
    except (TypeError, ValueError, RecursionError):
        history = None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise InputError(f"The GGUF file's metadata: {HISTORY} must be a JSON list of objects.")
    return history
