"""OPT: a GPT-2 with ReLU whose positions begin at the table's third row.

Its 350M norms after each addition instead of before, and projects narrower token embeddings to its width.
Zhang et al., "OPT: Open Pre-trained Transformer Language Models", https://arxiv.org/abs/2205.01068
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
    read_fields,
    token_values,
)
from ragjax.interchange.layout import Layout, Stored, language_model, layer_norm_tensors, linear_tensors
from ragjax.models.decoder_config import DecoderConfig

_OFFSET = 2
"""Rows of the table of positions that no position reads."""

_FIELDS = {
    "vocab_size": Field("vocab_size", COUNT, 50272),
    "max_position_embeddings": Field("positions", COUNT, 2048),
    "hidden_size": Field("width", COUNT, 768),
    "word_embed_proj_dim": Field("embedding_width", COUNT_OR_NONE, None),
    "num_hidden_layers": Field("layers", COUNT, 12),
    "num_attention_heads": Field("heads", COUNT, 12),
    "ffn_dim": Field("mlp_width", COUNT, 3072),
    "activation_function": Field("activation", ACTIVATION, "relu"),
    "enable_bias": Field("mlp_bias", FLAG, True),
    "tie_word_embeddings": Field("tied", FLAG, True),
    "dropout": Field("residual_dropout", SHARE, 0.1),
    "attention_dropout": Field("attention_dropout", SHARE, 0.0),
    "init_std": Field("initializer_range", SIZE, 0.02),
    "bos_token_id": Field("bos_token", TOKEN, 2),
    "eos_token_id": Field("eos_token", TOKENS, 2),
}
_NORM_FIELDS = {
    "do_layer_norm_before": Field("before", FLAG, True),
    "_remove_final_layer_norm": Field("no_final", FLAG, False),
    "layer_norm_elementwise_affine": Field(
        "affine", Kind("true: norms without scale and bias are not supported", lambda v: v is True), True
    ),
}

_REFUSED = {
    "layerdrop": "layers that are left out at random in training are not supported: set it to 0",
}
"""Fields that are fine while 0."""

_UNREAD = frozenset({"activation_dropout", "output_projection"})
"""Fields of the published checkpoints that no class of transformers reads."""


def opt_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture that an OPT's config.json describes.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    found = read_fields(
        values,
        _FIELDS | _NORM_FIELDS,
        refused=REFUSED | _REFUSED,
        ignored=BOOKKEEPING | _UNREAD,
        check=_problems,
    )
    before, no_final, _ = (found.pop(field.ours) for field in _NORM_FIELDS.values())
    if found["embedding_width"] == found["width"]:
        found["embedding_width"] = None
    return DecoderConfig(
        **found,
        position_offset=_OFFSET,
        residual="pre_norm" if before else "post_norm",
        final_norm=before and not no_final,
        attention_bias=found["mlp_bias"],
        attention_out_bias=found["mlp_bias"],
    )


def _problems(found: dict[str, Any]) -> list[str]:
    width, heads = found.get("width"), found.get("heads")
    if width and heads and width % heads:
        return [f"hidden_size {width} must be divisible by num_attention_heads {heads}"]
    return []


def opt_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of an OPT."""
    before = config.residual == "pre_norm"
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        **{name: getattr(config, field.ours) for name, field in _FIELDS.items()},
        **token_values(config),
        "word_embed_proj_dim": config.token_width,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "layer_norm_elementwise_affine": True,
        "layerdrop": 0.0,
    }


def layout(config: DecoderConfig) -> Layout:
    """Where OPT's tensors belong."""
    begin = "model.decoder"
    places = (_OFFSET + config.positions, config.width)
    stored = [
        Stored(f"{begin}.embed_positions.weight", places, ("embedding/positions",)),
    ]
    if config.embedding_width:
        narrow, wide = config.embedding_width, config.width
        for name, target, inputs, outputs in (
            ("project_in", "embedding/projection", narrow, wide),
            ("project_out", "output_projection", wide, narrow),
        ):
            stored += linear_tensors(f"{begin}.{name}", (target,), inputs=inputs, outputs=outputs, bias=False)
    stored += [tensor for layer in range(config.layers) for tensor in _block(config, layer)]
    if config.final_norm:
        stored += layer_norm_tensors(f"{begin}.final_layer_norm", "final_norm", config.width)
    return language_model(
        config,
        stored,
        tokens=f"{begin}.embed_tokens.weight",
        prefix="model.",
        ignored=r"(model\.)?decoder\.version",
    )


def _block(config: DecoderConfig, layer: int) -> list[Stored]:
    width, inner, begin = config.width, config.mlp_width, f"model.decoder.layers.{layer}"
    tensors = []
    for name, target, inputs, outputs in (
        ("self_attn.q_proj", "attention/query", width, width),
        ("self_attn.k_proj", "attention/key", width, width),
        ("self_attn.v_proj", "attention/value", width, width),
        ("self_attn.out_proj", "attention/out", width, width),
        ("fc1", "mlp/up", width, inner),
        ("fc2", "mlp/down", inner, width),
    ):
        tensors += linear_tensors(
            f"{begin}.{name}", (f"layers/{target}",),
            inputs=inputs, outputs=outputs, layer=layer, bias=config.mlp_bias,
        )  # fmt: skip
    # What OPT calls the final norm of a block is that of its MLP.
    for name, target in (("self_attn_layer_norm", "attention_norm"), ("final_layer_norm", "mlp_norm")):
        tensors += layer_norm_tensors(f"{begin}.{name}", f"layers/{target}", width, layer)
    return tensors
