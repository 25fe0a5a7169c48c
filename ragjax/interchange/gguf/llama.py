"""Llama, and Qwen2, which is stored alike but for the order of rotary pairs, in GGUF."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ragjax.errors import InputError
from ragjax.interchange.fields import COUNT, COUNT_OR_NONE, SIZE, TOKEN, TOKENS, Field, Kind, read_fields
from ragjax.interchange.gguf.rope import FACTORS, interleaved, scaling_of
from ragjax.interchange.layout import TRANSPOSED, Layout, Stored, linear_tensors
from ragjax.interchange.tensors import Tensors
from ragjax.models.decoder_config import DecoderConfig, Rotary, RotaryScaling

_FIELDS = {
    "vocab_size": Field("vocab_size", COUNT, None),
    "context_length": Field("positions", COUNT, None),
    "embedding_length": Field("width", COUNT, None),
    "block_count": Field("layers", COUNT, None),
    "feed_forward_length": Field("mlp_width", COUNT, None),
    "attention.head_count": Field("heads", COUNT, None),
    "attention.head_count_kv": Field("kv_heads", COUNT_OR_NONE, None),
    "attention.key_length": Field("head_size", COUNT_OR_NONE, None),
    "attention.layer_norm_rms_epsilon": Field("norm_epsilon", SIZE, None),
    "bos_token_id": Field("bos_token", TOKEN, None),
    "eos_token_id": Field("eos_token", TOKENS, None),
}
_POSITIVE = Kind("a number above 0", lambda v: SIZE.accepts(v) and v > 0)
_SCALINGS = ("none", "linear")
_ROTARY = {
    "attention.value_length": Field("value_size", COUNT_OR_NONE, None),
    "rope.dimension_count": Field("turned", COUNT_OR_NONE, None),
    "rope.freq_base": Field("base", _POSITIVE, 10000.0),
    "rope.scaling.type": Field("kind", Kind(" or ".join(_SCALINGS), lambda v: v in _SCALINGS), "none"),
    "rope.scaling.factor": Field("factor", SIZE, 1.0),
}
"""Fields that `Rotary` is made of, or that say nothing new."""

_SYNONYMS = {"rope.scale_linear": "rope.scaling.factor"}
_REFUSED = {
    "expert_count": "mixtures of experts are not supported",
    "expert_used_count": "mixtures of experts are not supported",
    "attention.sliding_window": "windows of attention are not supported in this format",
}
"""Keys that are fine while zero."""

_IGNORED = frozenset({"tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"})


def llama_from(values: dict[str, Any], tensors: Tensors) -> DecoderConfig:
    """The architecture of a Llama, from its metadata and the names of its tensors.

    Raises:
      InputError: names every key that is wrong, unknown, or asks for what is not supported.
    """
    names = {"attention_bias": "attn_q", "attention_out_bias": "attn_output", "mlp_bias": "ffn_up"}
    return _from(values, tensors, {ours: f"blk.0.{n}.bias" in tensors.shapes for ours, n in names.items()})


def qwen2_from(values: dict[str, Any], tensors: Tensors) -> DecoderConfig:
    """The architecture of a Qwen2, as `llama_from`: with biases on queries, keys and values alone."""
    biases: dict[str, Any] = {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False}
    config = _from(values, tensors, biases)
    if config.head_size is not None:
        raise InputError(
            f"The GGUF file's metadata: {config.heads} heads of {config.head_size} values do not make "
            f"embedding_length {config.width}, as in a qwen2 they must."
        )
    return config


def _from(values: dict[str, Any], tensors: Tensors, biases: dict[str, Any]) -> DecoderConfig:
    found = read_fields(
        values, _FIELDS | _ROTARY, synonyms=_SYNONYMS, refused=_REFUSED, ignored=_IGNORED, check=_problems,
        source="The GGUF file's metadata",
    )  # fmt: skip
    stated = {field.ours: found.pop(field.ours) for field in _ROTARY.values()}
    if found["head_size"] and found["head_size"] * found["heads"] == found["width"]:
        found["head_size"] = None
    if found["kv_heads"] == found["heads"]:
        found["kv_heads"] = None
    scaling = None
    if FACTORS in tensors.shapes:
        scaling = scaling_of(np.asarray(tensors.read(FACTORS), np.float32), stated["base"])
    elif stated["kind"] == "linear" and stated["factor"] not in (0, 1):
        scaling = RotaryScaling("linear", stated["factor"])
    return DecoderConfig(
        **found,
        rotary=Rotary(stated["base"], None, scaling),
        learned_positions=False,
        norm="rms",
        gated=True,
        activation="silu",
        tied="output.weight" not in tensors.shapes,
        **biases,
    )


def _problems(found: dict[str, Any]) -> list[str]:
    problems = []
    width, heads, shared = (found.get(name) for name in ("width", "heads", "kv_heads"))
    size = found.get("head_size") or (width // heads if width and heads else None)
    if width and heads and not found.get("head_size") and width % heads:
        problems.append(f"embedding_length {width} must be divisible by attention.head_count {heads}")
    if heads and shared and heads % shared:
        problems.append(f"attention.head_count {heads} must be divisible by attention.head_count_kv {shared}")
    if size and size % 2:
        problems.append(f"heads are {size} values wide: an even number is turned in pairs")
    for name, ours in (("attention.value_length", "value_size"), ("rope.dimension_count", "turned")):
        stated = found.get(ours)
        if size and stated and stated != size:
            problems.append(f"{name} {stated}: only the width of a head, {size}, is supported")
    return problems


def llama_to(config: DecoderConfig) -> dict[str, Any]:
    """The metadata of a Llama."""
    rotary = config.rotary or Rotary()
    values: dict[str, Any] = {
        "context_length": config.positions,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.key_value_heads,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "vocab_size": config.vocab_size,
        "rope.dimension_count": rotary.width or config.head_width,
        "rope.freq_base": float(rotary.base),
    }
    if config.head_width * config.heads != config.width:
        values |= {"attention.key_length": config.head_width, "attention.value_length": config.head_width}
    if rotary.scaling is not None and rotary.scaling.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rotary.scaling.factor)}
    return values


def _layout(config: DecoderConfig, *, halves: bool) -> Layout:
    width, table = config.width, (config.vocab_size, config.width)
    stored = [
        Stored("token_embd.weight", table, ("embedding/tokens",)),
        *(tensor for layer in range(config.layers) for tensor in _block(config, layer, halves)),
        Stored("output_norm.weight", (width,), ("final_norm/scale",)),
    ]
    if not config.tied:
        stored.append(Stored("output.weight", table, ("head",)))
    # Frequencies are no parameters, those of each layer what older files carry along.
    ignored = r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight"
    return Layout(tuple(stored), ignored=ignored, source="the GGUF file's metadata")


llama_layout = partial(_layout, halves=False)
"""Where Llama's tensors belong: the two values of a rotary pair are neighbours."""

qwen2_layout = partial(_layout, halves=True)
"""Where Qwen2's tensors belong: the halves of a head are the pairs, as here."""


def _block(config: DecoderConfig, layer: int, halves: bool) -> list[Stored]:
    width, inner, begin = config.width, config.mlp_width, f"blk.{layer}"
    query, shared = (count * config.head_width for count in (config.heads, config.key_value_heads))
    turned = [
        TRANSPOSED if halves else interleaved(count) for count in (config.heads, config.key_value_heads)
    ]
    tensors = []
    for name, target, inputs, outputs, bias, packing in (
        ("attn_q", "attention/query", width, query, config.attention_bias, turned[0]),
        ("attn_k", "attention/key", width, shared, config.attention_bias, turned[1]),
        ("attn_v", "attention/value", width, shared, config.attention_bias, TRANSPOSED),
        ("attn_output", "attention/out", query, width, config.attention_out_bias, TRANSPOSED),
        ("ffn_gate", "mlp/gate", width, inner, config.mlp_bias, TRANSPOSED),
        ("ffn_up", "mlp/up", width, inner, config.mlp_bias, TRANSPOSED),
        ("ffn_down", "mlp/down", inner, width, config.mlp_bias, TRANSPOSED),
    ):
        tensors += linear_tensors(
            f"{begin}.{name}", (f"layers/{target}",), inputs=inputs, outputs=outputs, layer=layer, bias=bias,
            packing=packing,
        )  # fmt: skip
    for name, target in (("attn_norm", "attention_norm"), ("ffn_norm", "mlp_norm")):
        tensors.append(Stored(f"{begin}.{name}.weight", (width,), (f"layers/{target}/scale",), layer))
    return tensors
