"""GPT-2 in GGUF: one tensor for query, key and value; weights as [outputs, inputs]."""

from __future__ import annotations

from typing import Any

from ragjax.interchange.fields import COUNT, SIZE, TOKEN, TOKENS, Field, read_fields
from ragjax.interchange.layout import Layout, Stored, layer_norm_tensors, linear_tensors
from ragjax.interchange.tensors import Tensors
from ragjax.models.decoder_config import DecoderConfig

_FIELDS = {
    "vocab_size": Field("vocab_size", COUNT, None),
    "context_length": Field("positions", COUNT, None),
    "embedding_length": Field("width", COUNT, None),
    "block_count": Field("layers", COUNT, None),
    "feed_forward_length": Field("mlp_width", COUNT, None),
    "attention.head_count": Field("heads", COUNT, None),
    "attention.layer_norm_epsilon": Field("norm_epsilon", SIZE, None),
    "bos_token_id": Field("bos_token", TOKEN, None),
    "eos_token_id": Field("eos_token", TOKENS, None),
}
_IGNORED = frozenset({"attention.head_count_kv", "rope.dimension_count"})
"""What some converters write for every model."""


def gpt2_from(values: dict[str, Any], tensors: Tensors) -> DecoderConfig:
    """The architecture of a GPT-2, from its metadata.

    Raises:
      InputError: names every key that is wrong, unknown, or asks for what is not supported.
    """
    found = read_fields(values, _FIELDS, ignored=_IGNORED, check=_problems, source="The GGUF file's metadata")
    return DecoderConfig(**found, tied="output.weight" not in tensors.shapes)


def _problems(found: dict[str, Any]) -> list[str]:
    width, heads = found.get("width"), found.get("heads")
    if width and heads and width % heads:
        return [f"embedding_length {width} must be divisible by attention.head_count {heads}"]
    return []


def gpt2_to(config: DecoderConfig) -> dict[str, Any]:
    """The metadata of a GPT-2."""
    own = _FIELDS.keys() - {"vocab_size", "bos_token_id", "eos_token_id"}
    return {name: getattr(config, field.ours) for name, field in _FIELDS.items() if name in own}


def layout(config: DecoderConfig) -> Layout:
    """Where GPT-2's tensors belong."""
    width, table = config.width, (config.vocab_size, config.width)
    stored = [
        Stored("token_embd.weight", table, ("embedding/tokens",)),
        Stored("position_embd.weight", (config.positions, width), ("embedding/positions",)),
        *(tensor for layer in range(config.layers) for tensor in _block(config, layer)),
        *layer_norm_tensors("output_norm", "final_norm", width),
    ]
    if not config.tied:
        stored.append(Stored("output.weight", table, ("head",)))
    return Layout(tuple(stored), source="the GGUF file's metadata")


def _block(config: DecoderConfig, layer: int) -> list[Stored]:
    width, inner, begin = config.width, config.mlp_width, f"blk.{layer}"
    fused = tuple(f"layers/attention/{name}" for name in ("query", "key", "value"))
    tensors = []
    for name, targets, inputs, outputs in (
        ("attn_qkv", fused, width, 3 * width),
        ("attn_output", ("layers/attention/out",), width, width),
        ("ffn_up", ("layers/mlp/up",), width, inner),
        ("ffn_down", ("layers/mlp/down",), inner, width),
    ):
        tensors += linear_tensors(f"{begin}.{name}", targets, inputs=inputs, outputs=outputs, layer=layer)
    for name, target in (("attn_norm", "attention_norm"), ("ffn_norm", "mlp_norm")):
        tensors += layer_norm_tensors(f"{begin}.{name}", f"layers/{target}", width, layer)
    return tensors
