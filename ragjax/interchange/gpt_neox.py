"""GPT-NeoX and Pythia: rotary positions on a part of each head, attention and MLP side by side.

Black et al., "GPT-NeoX-20B", https://arxiv.org/abs/2204.06745; Biderman et al., "Pythia",
https://arxiv.org/abs/2304.01373
"""

from __future__ import annotations

import math
from typing import Any

from ragjax.interchange.fields import (
    ACTIVATION,
    BOOKKEEPING,
    COUNT,
    FLAG,
    REFUSED,
    SHARE,
    SIZE,
    TOKEN,
    TOKENS,
    Field,
    read_fields,
    token_values,
)
from ragjax.interchange.layout import (
    Layout,
    Stored,
    by_head,
    language_model,
    layer_norm_tensors,
    linear_tensors,
)
from ragjax.interchange.rotary_fields import ROTARY_FIELDS, read_rotary, rotary_values
from ragjax.models.decoder_config import DecoderConfig, Rotary

_FIELDS = {
    "vocab_size": Field("vocab_size", COUNT, 50432),
    "max_position_embeddings": Field("positions", COUNT, 2048),
    "hidden_size": Field("width", COUNT, 6144),
    "num_hidden_layers": Field("layers", COUNT, 44),
    "num_attention_heads": Field("heads", COUNT, 64),
    "intermediate_size": Field("mlp_width", COUNT, 24576),
    "hidden_act": Field("activation", ACTIVATION, "gelu"),
    "layer_norm_eps": Field("norm_epsilon", SIZE, 1e-5),
    "attention_bias": Field("attention_bias", FLAG, True),
    "tie_word_embeddings": Field("tied", FLAG, False),
    "hidden_dropout": Field("residual_dropout", SHARE, 0.0),
    "attention_dropout": Field("attention_dropout", SHARE, 0.0),
    "initializer_range": Field("initializer_range", SIZE, 0.02),
    "bos_token_id": Field("bos_token", TOKEN, 0),
    "eos_token_id": Field("eos_token", TOKENS, 2),
}
_PARALLEL = {"use_parallel_residual": Field("parallel", FLAG, True)}

_BASES, _SHARES = ("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")
"""Both of a pair stand in what late releases of transformers 4 wrote."""
_ROTARY = ROTARY_FIELDS | {*_BASES, *_SHARES}
_UNREAD = frozenset({"attention_probs_dropout_prob", "classifier_dropout", "hidden_dropout_prob"})
"""Fields of classifiers, and of older checkpoints, that no language model of transformers reads."""


def gpt_neox_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture that a GPT-NeoX's config.json describes.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    rotary = read_rotary(values, theta=_BASES, share=_SHARES, default_share=0.25)

    def problems(found: dict[str, Any]) -> list[str]:
        width, heads = found.get("width"), found.get("heads")
        if not width or not heads:
            return rotary.problems
        if width % heads:
            return [*rotary.problems, f"hidden_size {width} must be divisible by num_attention_heads {heads}"]
        turned = int(width // heads * rotary.share)
        if turned % 2 or not turned:
            return [
                *rotary.problems,
                f"rotary_pct {rotary.share} turns {turned} of a head's {width // heads} values, in pairs: an "
                "even number of at least 2 was expected",
            ]
        return rotary.problems

    ignored = BOOKKEEPING | _ROTARY | _UNREAD
    found = read_fields(values, _FIELDS | _PARALLEL, refused=REFUSED, ignored=ignored, check=problems)
    parallel = found.pop("parallel")
    return DecoderConfig(
        **found,
        learned_positions=False,
        rotary=rotary.rotary(found["width"] // found["heads"]),
        residual="parallel" if parallel else "pre_norm",
        attention_out_bias=found["attention_bias"],
        embedding_dropout=found["residual_dropout"],
    )


def gpt_neox_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a GPT-NeoX, its positions as transformers 5 and older read them."""
    rotary = config.rotary or Rotary()
    share = _share(rotary.width or config.head_width, config.head_width)
    spelled = rotary_values(rotary)
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        **{name: getattr(config, field.ours) for name, field in _FIELDS.items()},
        **token_values(config),
        "use_parallel_residual": config.residual == "parallel",
        "rope_parameters": spelled["rope_parameters"] | {"partial_rotary_factor": share},
        "rope_scaling": spelled["rope_scaling"],
        "rotary_emb_base": rotary.base,
        "rotary_pct": share,
    }


def _share(turned: int, head: int) -> float:
    """A share of `head` values that, rounded down as readers do, is `turned`."""
    share = turned / head
    return share if int(head * share) == turned else math.nextafter(share, 1)


def layout(config: DecoderConfig) -> Layout:
    """Where GPT-NeoX's tensors belong; queries, keys and values stand head by head in one."""
    stored = [
        *(tensor for layer in range(config.layers) for tensor in _block(config, layer)),
        *layer_norm_tensors("gpt_neox.final_layer_norm", "final_norm", config.width),
    ]
    return language_model(
        config,
        stored,
        tokens="gpt_neox.embed_in.weight",
        head="embed_out.weight",
        prefix="gpt_neox.",
        # Masks, constants and frequencies that older checkpoints carry along.
        ignored=r"(gpt_neox\.)?(layers\.\d+\.attention\.)?((masked_)?bias|rotary_emb\.inv_freq)",
    )


def _block(config: DecoderConfig, layer: int) -> list[Stored]:
    width, inner, begin = config.width, config.mlp_width, f"gpt_neox.layers.{layer}"
    fused = tuple(f"layers/attention/{name}" for name in ("query", "key", "value"))
    return [
        *linear_tensors(
            f"{begin}.attention.query_key_value", fused, inputs=width, outputs=3 * width, layer=layer,
            bias=config.attention_bias, packing=by_head(config.heads),
        ),
        *linear_tensors(
            f"{begin}.attention.dense", ("layers/attention/out",), inputs=width, outputs=width, layer=layer,
            bias=config.attention_out_bias,
        ),
        *linear_tensors(
            f"{begin}.mlp.dense_h_to_4h", ("layers/mlp/up",), inputs=width, outputs=inner, layer=layer
        ),
        *linear_tensors(
            f"{begin}.mlp.dense_4h_to_h", ("layers/mlp/down",), inputs=inner, outputs=width, layer=layer
        ),
        *layer_norm_tensors(f"{begin}.input_layernorm", "layers/attention_norm", width, layer),
        *layer_norm_tensors(f"{begin}.post_attention_layernorm", "layers/mlp_norm", width, layer),
    ]  # fmt: skip
