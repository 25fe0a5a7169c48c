"""GPT-Neo: GPT-2's block with unscaled attention, and windows in some of the layers.

Black et al., "GPT-Neo", https://doi.org/10.5281/zenodo.5297715
"""

from __future__ import annotations

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
    is_whole,
    read_fields,
    token_values,
)
from ragjax.interchange.layout import Layout, Stored, language_model, layer_norm_tensors, linear_tensors
from ragjax.models.decoder_config import DecoderConfig

_GLOBAL, _LOCAL = "global", "local"
_WINDOW = 256
"""Tokens that a local layer sees where nothing else is stated."""


def _are_kinds(value: Any) -> bool:
    return isinstance(value, list) and all(kind in (_GLOBAL, _LOCAL) for kind in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _are_kinds(value[0]) and is_whole(value[1])


_KINDS = Kind(f"a list of {_GLOBAL} and {_LOCAL}, or null", lambda v: v is None or _are_kinds(v))
_TYPES = Kind(
    f"a list of pairs [list of {_GLOBAL} and {_LOCAL}, how often], or null",
    lambda v: v is None or (isinstance(v, list) and all(map(_is_pair, v))),
)

_FIELDS = {
    "vocab_size": Field("vocab_size", COUNT, 50257),
    "max_position_embeddings": Field("positions", COUNT, 2048),
    "hidden_size": Field("width", COUNT, 2048),
    "num_layers": Field("layers", COUNT, 24),
    "num_heads": Field("heads", COUNT, 16),
    "intermediate_size": Field("mlp_width", COUNT_OR_NONE, None),
    "activation_function": Field("activation", ACTIVATION, "gelu_new"),
    "layer_norm_epsilon": Field("norm_epsilon", SIZE, 1e-5),
    "tie_word_embeddings": Field("tied", FLAG, True),
    "embed_dropout": Field("embedding_dropout", SHARE, 0.0),
    "attention_dropout": Field("attention_dropout", SHARE, 0.0),
    "resid_dropout": Field("residual_dropout", SHARE, 0.0),
    "initializer_range": Field("initializer_range", SIZE, 0.02),
    "bos_token_id": Field("bos_token", TOKEN, 50256),
    "eos_token_id": Field("eos_token", TOKENS, 50256),
}
_WINDOW_FIELDS = {
    "attention_types": Field("types", _TYPES, None),
    "attention_layers": Field("kinds", _KINDS, None),
    "window_size": Field("window", COUNT, _WINDOW),
}

_SYNONYMS = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}


def gpt_neo_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture that a GPT-Neo's config.json describes.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    found = read_fields(
        values,
        _FIELDS | _WINDOW_FIELDS,
        synonyms=_SYNONYMS,
        refused=REFUSED,
        ignored=BOOKKEEPING | {"classifier_dropout"},
        check=_problems,
    )
    types, kinds, window = (found.pop(field.ours) for field in _WINDOW_FIELDS.values())
    kinds = _expanded(types) if kinds is None else kinds
    found["windows"] = tuple(window if kind == _LOCAL else 0 for kind in kinds) if _LOCAL in kinds else ()
    found["mlp_width"] = found["mlp_width"] or 4 * found["width"]
    return DecoderConfig(**found, attention_bias=False, scale_attention=False)


def _expanded(types: list[Any] | None) -> list[str]:
    """The kind of each layer; what transformers has where a config.json has none is twelve pairs."""
    pairs: list[Any] = [[[_GLOBAL, _LOCAL], 12]] if types is None else types
    return [kind for kinds, times in pairs for kind in kinds * times]


def _problems(found: dict[str, Any]) -> list[str]:
    width, heads, layers = (found.get(name) for name in ("width", "heads", "layers"))
    problems = []
    if width and heads and width % heads:
        problems.append(f"hidden_size {width} must be divisible by num_heads {heads}")
    if layers and "types" in found and "kinds" in found:
        types, kinds = found["types"], found["kinds"]
        stated = [] if types is None and kinds is not None else [("attention_types", _expanded(types))]
        stated += [] if kinds is None else [("attention_layers", kinds)]
        problems += [
            f"{name}: {len(each)} entries for num_layers {layers}"
            for name, each in stated
            if len(each) != layers
        ]
        if not problems and any(each != stated[0][1] for _, each in stated):
            problems.append(f"attention_layers: attention_types says {stated[0][1]}, this says {kinds}")
    return problems


def gpt_neo_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a GPT-Neo, which has one size for all windows."""
    values = {name: getattr(config, field.ours) for name, field in _FIELDS.items()} | token_values(config)
    if config.mlp_width == 4 * config.width:
        values["intermediate_size"] = None
    kinds = [_LOCAL if window else _GLOBAL for window in config.layer_windows]
    return {
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        **values,
        "attention_types": _repeated(kinds),
        "attention_layers": kinds,
        "window_size": max(config.layer_windows) or _WINDOW,
    }


def _repeated(kinds: list[str]) -> list[Any]:
    """The shortest list that, repeated, is `kinds`, and how often."""
    count = len(kinds)
    period = next(p for p in range(1, count + 1) if count % p == 0 and kinds[:p] * (count // p) == kinds)
    return [[kinds[:period], count // period]]


def layout(config: DecoderConfig) -> Layout:
    """Where GPT-Neo's tensors belong."""
    stored = [
        Stored("transformer.wpe.weight", (config.positions, config.width), ("embedding/positions",)),
        *(tensor for layer in range(config.layers) for tensor in _block(config, layer)),
        *layer_norm_tensors("transformer.ln_f", "final_norm", config.width),
    ]
    return language_model(
        config,
        stored,
        tokens="transformer.wte.weight",
        prefix="transformer.",
        # Masks and constants that older checkpoints carry along.
        ignored=r"(transformer\.)?h\.\d+\.attn\.attention\.(masked_)?bias",
    )


def _block(config: DecoderConfig, layer: int) -> list[Stored]:
    width, inner, begin = config.width, config.mlp_width, f"transformer.h.{layer}"
    tensors = []
    for name, target, inputs, outputs, bias in (
        ("attn.attention.q_proj", "attention/query", width, width, False),
        ("attn.attention.k_proj", "attention/key", width, width, False),
        ("attn.attention.v_proj", "attention/value", width, width, False),
        ("attn.attention.out_proj", "attention/out", width, width, True),
        ("mlp.c_fc", "mlp/up", width, inner, True),
        ("mlp.c_proj", "mlp/down", inner, width, True),
    ):
        tensors += linear_tensors(
            f"{begin}.{name}", (f"layers/{target}",), inputs=inputs, outputs=outputs, layer=layer, bias=bias
        )
    for name, target in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
        tensors += layer_norm_tensors(f"{begin}.{name}", f"layers/{target}", width, layer)
    return tensors
