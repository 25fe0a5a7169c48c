"""Llama and the models that share its block: SmolLM2, TinyLlama, and others whose `model_type` says so.

Touvron et al., "LLaMA", https://arxiv.org/abs/2302.13971; grouped heads of keys and values: Ainslie et
al., "GQA", https://arxiv.org/abs/2305.13245.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ragjax.interchange.fields import (
    ACTIVATION,
    BOOKKEEPING,
    COUNT,
    COUNT_OR_NONE,
    FLAG,
    REFUSED,
    SHARE,
    SIZE,
    TOKEN,
    TOKENS,
    Field,
    Kind,
    read_fields,
    token_values,
)
from ragjax.interchange.layout import Layout, Stored, language_model, linear_tensors
from ragjax.interchange.rotary_fields import ROTARY_FIELDS, read_rotary, rotary_values
from ragjax.models.decoder_config import DecoderConfig, Rotary

SHARED_FIELDS = {
    "hidden_size": Field("width", COUNT, 4096),
    "num_hidden_layers": Field("layers", COUNT, 32),
    "num_attention_heads": Field("heads", COUNT, 32),
    "head_dim": Field("head_size", COUNT_OR_NONE, None),
    "hidden_act": Field("activation", ACTIVATION, "silu"),
    "initializer_range": Field("initializer_range", SIZE, 0.02),
    "rms_norm_eps": Field("norm_epsilon", SIZE, 1e-6),
    "tie_word_embeddings": Field("tied", FLAG, False),
    "attention_dropout": Field("attention_dropout", SHARE, 0.0),
}
"""Fields of all families with Llama's block."""

_FIELDS = SHARED_FIELDS | {
    "vocab_size": Field("vocab_size", COUNT, 32000),
    "intermediate_size": Field("mlp_width", COUNT, 11008),
    "num_key_value_heads": Field("kv_heads", COUNT_OR_NONE, None),
    "max_position_embeddings": Field("positions", COUNT, 2048),
    "attention_bias": Field("attention_bias", FLAG, False),
    "mlp_bias": Field("mlp_bias", FLAG, False),
    "bos_token_id": Field("bos_token", TOKEN, 1),
    "eos_token_id": Field("eos_token", TOKENS, 2),
}
_SLICES = {"pretraining_tp": Field("slices", Kind("1, or null", lambda v: v is None or v == 1), 1)}
"""Into how many slices older transformers split a product, which rounds otherwise."""

_REFUSED = {
    "rope_interleaved": "neighbours as the pairs that are turned are not supported",
    "use_mrope": "positions in more than one direction are not supported",
}
"""Fields that are fine while false."""

_NOTES = frozenset({"is_llama_config", "max_sequence_length", "transformers.js_config"})
"""Fields that some checkpoints carry and that change no logit."""


def llama_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture that a Llama's config.json describes.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    found = read_block(values, _FIELDS | _SLICES, _llama_problems)
    del found["slices"]
    return DecoderConfig(**found, attention_out_bias=found["attention_bias"])


def _llama_problems(found: dict[str, Any]) -> list[str]:
    width, heads = found.get("width"), found.get("heads")
    # Also where head_dim is given: so does transformers.
    if width and heads and width % heads:
        return [f"hidden_size {width} must be divisible by num_attention_heads {heads}"]
    return []


def read_block(
    values: Mapping[str, Any],
    fields: Mapping[str, Field],
    check: Callable[[dict[str, Any]], list[str]],
) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that a config.json of Llama's block states or implies.

    Args:
      values: config.json.
      fields: the family's fields.
      check: complaints about fields that do not fit together, as `read_fields` takes it.

    Raises:
      InputError: as `read_fields`.
    """
    rotary = read_rotary(values)

    def problems(found: dict[str, Any]) -> list[str]:
        whole = [] if rotary.share == 1 else ["partial_rotary_factor: heads are turned whole in this family"]
        return rotary.problems + whole + _head_problems(found) + check(found)

    ignored = BOOKKEEPING | ROTARY_FIELDS | _NOTES
    found = read_fields(values, fields, refused=REFUSED | _REFUSED, ignored=ignored, check=problems)
    width, heads = found["width"], found["heads"]
    # As `DecoderConfig` says it where nothing is out of the ordinary.
    if found["head_size"] and found["head_size"] * heads == width:
        found["head_size"] = None
    if found["kv_heads"] == heads:
        found["kv_heads"] = None
    turned = rotary.rotary(found["head_size"] or width // heads)
    return found | {"learned_positions": False, "rotary": turned, "norm": "rms", "gated": True}


def _head_problems(found: dict[str, Any]) -> list[str]:
    width, heads, shared = found.get("width"), found.get("heads"), found.get("kv_heads")
    head = found.get("head_size") or (width // heads if width and heads else None)
    problems = []
    if heads and shared and heads % shared:
        problems.append(f"num_attention_heads {heads} must be divisible by num_key_value_heads {shared}")
    if head is not None and (head < 2 or head % 2):
        problems.append(f"head_dim {head} must be even: values of a head are turned in pairs")
    return problems


def llama_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a Llama."""
    own = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "pretraining_tp": 1}
    return own | block_values(config, _FIELDS)


def block_values(config: DecoderConfig, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values of a family's fields, and those of its positions, with nothing left to defaults."""
    values = {name: getattr(config, field.ours) for name, field in fields.items()}
    spelled = {"head_dim": config.head_width, "num_key_value_heads": config.key_value_heads}
    return values | token_values(config) | spelled | rotary_values(config.rotary or Rotary())


def layout(config: DecoderConfig) -> Layout:
    """Where Llama's tensors belong: as `torch.nn.Linear` holds them, [outputs, inputs]."""
    width = config.width
    stored = [
        *(tensor for layer in range(config.layers) for tensor in _block(config, layer)),
        Stored("model.norm.weight", (width,), ("final_norm/scale",)),
    ]
    return language_model(
        config,
        stored,
        tokens="model.embed_tokens.weight",
        prefix="model.",
        # Frequencies that older checkpoints carry along.
        ignored=r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    )


def _block(config: DecoderConfig, layer: int) -> list[Stored]:
    width, inner = config.width, config.mlp_width
    queries, shared = (count * config.head_width for count in (config.heads, config.key_value_heads))
    begin, tensors = f"model.layers.{layer}", []
    for name, target, inputs, outputs, bias in (
        ("self_attn.q_proj", "attention/query", width, queries, config.attention_bias),
        ("self_attn.k_proj", "attention/key", width, shared, config.attention_bias),
        ("self_attn.v_proj", "attention/value", width, shared, config.attention_bias),
        ("self_attn.o_proj", "attention/out", queries, width, config.attention_out_bias),
        ("mlp.gate_proj", "mlp/gate", width, inner, config.mlp_bias),
        ("mlp.up_proj", "mlp/up", width, inner, config.mlp_bias),
        ("mlp.down_proj", "mlp/down", inner, width, config.mlp_bias),
    ):
        tensors += linear_tensors(
            f"{begin}.{name}", (f"layers/{target}",), inputs=inputs, outputs=outputs, layer=layer, bias=bias
        )
    for name, target in (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "mlp_norm")):
        tensors.append(Stored(f"{begin}.{name}.weight", (width,), (f"layers/{target}/scale",), layer))
    return tensors
