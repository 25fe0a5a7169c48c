"""GPT-2 as Hugging Face writes it, and GPT-3: the same with the attention window of each layer.

`GPT2Config` has no field for banded attention, so a model that needs one is saved under a
`model_type` of its own: a runtime that knows only GPT-2 refuses it, where it would else compute
something different without a word.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ragjax.errors import InputError
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
    is_whole,
    read_fields,
    token_values,
)
from ragjax.interchange.layout import Layout, Stored, language_model
from ragjax.models.decoder_config import DecoderConfig

_WINDOWS = Kind(
    "a list of window sizes in tokens, 0 for dense attention",
    lambda v: isinstance(v, list) and bool(v) and all(is_whole(w) and w >= 0 for w in v),
)

_FIELDS = {
    "vocab_size": Field("vocab_size", COUNT, 50257),
    "n_positions": Field("positions", COUNT, 1024),
    "n_embd": Field("width", COUNT, 768),
    "n_layer": Field("layers", COUNT, 12),
    "n_head": Field("heads", COUNT, 12),
    "n_inner": Field("mlp_width", COUNT_OR_NONE, None),
    "activation_function": Field("activation", ACTIVATION, "gelu_new"),
    "layer_norm_epsilon": Field("norm_epsilon", SIZE, 1e-5),
    "tie_word_embeddings": Field("tied", FLAG, True),
    "scale_attn_weights": Field("scale_attention", FLAG, True),
    "scale_attn_by_inverse_layer_idx": Field("scale_attention_by_layer", FLAG, False),
    "reorder_and_upcast_attn": Field("upcast_attention", FLAG, False),
    "embd_pdrop": Field("embedding_dropout", SHARE, 0.1),
    "attn_pdrop": Field("attention_dropout", SHARE, 0.1),
    "resid_pdrop": Field("residual_dropout", SHARE, 0.1),
    "initializer_range": Field("initializer_range", SIZE, 0.02),
    "bos_token_id": Field("bos_token", TOKEN, 50256),
    "eos_token_id": Field("eos_token", TOKENS, 50256),
}

_SYNONYMS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def gpt2_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture that a GPT-2's config.json describes.

    Token ids outside the vocabulary, which a shrunken config inherits from GPT-2's defaults, name
    no token and are dropped.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    return _from(values, BOOKKEEPING)


def gpt3_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture of a config.json whose `attention_windows` give the window of each layer.

    Raises:
      InputError: as `gpt2_from`; also where `attention_windows` is no list of sizes.
    """
    windows: Any = values.get("attention_windows")
    if not _WINDOWS.accepts(windows):
        raise InputError(f"config.json: attention_windows must be {_WINDOWS.expected}, found {windows!r}.")
    return replace(_from(values, BOOKKEEPING | {"attention_windows"}), windows=tuple(windows))


def _from(values: dict[str, Any], ignored: frozenset[str]) -> DecoderConfig:
    found = read_fields(
        values, _FIELDS, synonyms=_SYNONYMS, refused=REFUSED, ignored=ignored, check=_shape_problems
    )
    if found["mlp_width"] is None:
        found["mlp_width"] = 4 * found["width"]
    return DecoderConfig(**found)


def _shape_problems(found: dict[str, Any]) -> list[str]:
    width, heads = found.get("width"), found.get("heads")
    if width and heads and width % heads:
        return [f"n_embd {width} must be divisible by n_head {heads}"]
    return []


def gpt2_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a GPT-2."""
    values = {field: getattr(config, ours) for field, (ours, _, _) in _FIELDS.items()} | token_values(config)
    if config.mlp_width == 4 * config.width:
        values["n_inner"] = None
    # Not read by transformers, but by converters to other formats.
    values["n_ctx"] = config.positions
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **values}


def gpt3_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a GPT-2 with banded attention."""
    own = {"model_type": "gpt3", "architectures": ["GPT3LMHeadModel"]}
    return {**gpt2_to(config), **own, "attention_windows": list(config.windows)}


def layout(config: DecoderConfig) -> Layout:
    """Where GPT-2's tensors belong.

    `Conv1D` stores [inputs, outputs], as kernels here are; `c_attn` holds query, key and value side by
    side along its outputs.
    """
    width, inner = config.width, config.mlp_width
    stored = [
        Stored("transformer.wpe.weight", (config.positions, width), ("embedding/positions",)),
        *(tensor for layer in range(config.layers) for tensor in _block(layer, width, inner)),
        Stored("transformer.ln_f.weight", (width,), ("final_norm/scale",)),
        Stored("transformer.ln_f.bias", (width,), ("final_norm/bias",)),
    ]
    return language_model(
        config,
        stored,
        tokens="transformer.wte.weight",
        prefix="transformer.",
        # Masks and constants that older checkpoints carry along.
        ignored=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
    )


def _block(layer: int, width: int, inner: int) -> list[Stored]:
    fused = tuple(f"layers/attention/{name}" for name in ("query", "key", "value"))
    tensors = []
    for name, targets, inputs, outputs in (
        ("attn.c_attn", fused, width, 3 * width),
        ("attn.c_proj", ("layers/attention/out",), width, width),
        ("mlp.c_fc", ("layers/mlp/up",), width, inner),
        ("mlp.c_proj", ("layers/mlp/down",), inner, width),
    ):
        kernels, biases = (tuple(f"{t}/{kind}" for t in targets) for kind in ("kernel", "bias"))
        tensors.append(Stored(f"transformer.h.{layer}.{name}.weight", (inputs, outputs), kernels, layer))
        tensors.append(Stored(f"transformer.h.{layer}.{name}.bias", (outputs,), biases, layer))
    for name, target in (("ln_1", "layers/attention_norm"), ("ln_2", "layers/mlp_norm")):
        tensors.append(Stored(f"transformer.h.{layer}.{name}.weight", (width,), (f"{target}/scale",), layer))
        tensors.append(Stored(f"transformer.h.{layer}.{name}.bias", (width,), (f"{target}/bias",), layer))
    return tensors
