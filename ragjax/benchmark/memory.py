"""Whether the texts that a model is to write fit into memory."""

from __future__ import annotations

from pathlib import Path

import jax

from ragjax.model import Model
from ragjax.onnx_model import OnnxModel

_FLOAT = 4


def bytes_of_texts(model: Model | OnnxModel, batch: int, tokens: int) -> int:
    """Bytes of keys, values and scores of a batch, in float32; a model needs no less besides its weights."""
    config = model.config
    per_token = 2 * config.layers * config.key_value_heads * config.head_width
    return batch * (tokens * per_token + config.vocab_size) * _FLOAT


def free_memory(model: Model | OnnxModel) -> int | None:
    """Bytes that are free where a model runs; none: nobody says."""
    told = jax.devices()[0].memory_stats() if isinstance(model, Model) else None
    if told and "bytes_limit" in told:
        return int(told["bytes_limit"] - told.get("bytes_in_use", 0))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
