"""Qwen2 and Qwen2.5: Llama's block with biases on queries, keys and values, and windows for some layers.

Yang et al., "Qwen2 Technical Report", https://arxiv.org/abs/2407.10671
"""

from __future__ import annotations

from typing import Any

from ragjax.interchange.fields import COUNT, COUNT_OR_NONE, FLAG, TOKEN, TOKENS, Field, Kind, is_whole
from ragjax.interchange.llama import SHARED_FIELDS, block_values, layout, read_block
from ragjax.models.decoder_config import DecoderConfig

__all__ = ["layout", "qwen2_from", "qwen2_to"]

_FULL, _SLIDING = "full_attention", "sliding_attention"

_FIELDS = SHARED_FIELDS | {
    "vocab_size": Field("vocab_size", COUNT, 151936),
    "intermediate_size": Field("mlp_width", COUNT, 22016),
    "num_key_value_heads": Field("kv_heads", COUNT_OR_NONE, 32),
    "max_position_embeddings": Field("positions", COUNT, 32768),
    "bos_token_id": Field("bos_token", TOKEN, None),
    "eos_token_id": Field("eos_token", TOKENS, None),
}
_WINDOW_FIELDS = {
    "use_sliding_window": Field("use_window", FLAG, False),
    "sliding_window": Field("window", COUNT_OR_NONE, 4096),
    "max_window_layers": Field("dense_layers", Kind("a whole number", is_whole), 28),
    "layer_types": Field(
        "kinds",
        Kind(
            f"a list of {_FULL} and {_SLIDING}, or null",
            lambda v: v is None or (isinstance(v, list) and all(kind in (_FULL, _SLIDING) for kind in v)),
        ),
        None,
    ),
}


def qwen2_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture that a Qwen2's config.json describes.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    found = read_block(values, _FIELDS | _WINDOW_FIELDS, _problems)
    stated = {field.ours: found.pop(field.ours) for field in _WINDOW_FIELDS.values()}
    windows = _windows(stated, found["layers"])
    return DecoderConfig(
        **found,
        attention_bias=True,
        attention_out_bias=False,
        mlp_bias=False,
        windows=windows if any(windows) else (),
    )


def _windows(stated: dict[str, Any], layers: int) -> tuple[int, ...]:
    """The window of each layer: where no list says which layers have one, those after the dense ones."""
    window = stated["window"] if stated["use_window"] and stated["window"] else 0
    if stated["kinds"] is None:
        return tuple(window if layer >= stated["dense_layers"] else 0 for layer in range(layers))
    return tuple(window if kind == _SLIDING else 0 for kind in stated["kinds"])


def _problems(found: dict[str, Any]) -> list[str]:
    kinds, problems = found.get("kinds"), []
    width, heads = found.get("width"), found.get("heads")
    if width and heads and not found.get("head_size") and width % heads:
        problems.append(f"hidden_size {width} must be divisible by num_attention_heads {heads}")
    if kinds is not None and len(kinds) != found.get("layers", len(kinds)):
        problems.append(f"layer_types: {len(kinds)} entries for num_hidden_layers {found['layers']}")
    windowed = found.get("use_window") and found.get("window")
    if kinds is not None and _SLIDING in kinds and not windowed:
        problems.append(f"layer_types: {_SLIDING} needs use_sliding_window and a sliding_window")
    return problems


def qwen2_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a Qwen2, which has one size for all windows."""
    windows = config.layer_windows
    dense = next((layer for layer, window in enumerate(windows) if window), config.layers)
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **block_values(config, _FIELDS),
        "use_sliding_window": any(windows),
        "sliding_window": max(windows) or None,
        "max_window_layers": dense,
        "layer_types": [_SLIDING if window else _FULL for window in windows],
    }
