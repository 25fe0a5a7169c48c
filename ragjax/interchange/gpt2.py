"""GPT-2 as Hugging Face writes it, and GPT-3: the same with the attention window of each layer.

`GPT2Config` has no field for banded attention, so a model that needs one is saved under a
`model_type` of its own: a runtime that knows only GPT-2 refuses it, where it would else compute
something different without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from ragjax.errors import InputError, listing
from ragjax.interchange.layout import Layout, Stored
from ragjax.models.activations import ACTIVATIONS
from ragjax.models.decoder_config import DecoderConfig


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Kind(NamedTuple):
    """What a field of config.json may hold."""

    expected: str
    accepts: Callable[[Any], bool]


_COUNT = _Kind("a whole number of at least 1", lambda v: _whole(v) and v >= 1)
_COUNT_OR_NONE = _Kind(f"{_COUNT.expected}, or null", lambda v: v is None or _COUNT.accepts(v))
_FLAG = _Kind("true or false", lambda v: isinstance(v, bool))
_SHARE = _Kind("a number of at least 0 and below 1", lambda v: _real(v) and 0 <= v < 1)
_SIZE = _Kind("a number of at least 0", lambda v: _real(v) and 0 <= v < float("inf"))
_ACTIVATION = _Kind(f"one of {', '.join(ACTIVATIONS)}", lambda v: isinstance(v, str) and v in ACTIVATIONS)
_TOKEN = _Kind("a token id, or null", lambda v: v is None or (_whole(v) and v >= 0))
_TOKENS = _Kind(
    "a token id, a list of them, or null",
    lambda v: all(map(_TOKEN.accepts, v)) if isinstance(v, list) else _TOKEN.accepts(v),
)
_WINDOWS = _Kind(
    "a list of window sizes in tokens, 0 for dense attention",
    lambda v: isinstance(v, list) and bool(v) and all(_whole(w) and w >= 0 for w in v),
)

_FIELDS: dict[str, tuple[str, _Kind, Any]] = {
    "vocab_size": ("vocab_size", _COUNT, 50257),
    "n_positions": ("positions", _COUNT, 1024),
    "n_embd": ("width", _COUNT, 768),
    "n_layer": ("layers", _COUNT, 12),
    "n_head": ("heads", _COUNT, 12),
    "n_inner": ("mlp_width", _COUNT_OR_NONE, None),
    "activation_function": ("activation", _ACTIVATION, "gelu_new"),
    "layer_norm_epsilon": ("norm_epsilon", _SIZE, 1e-5),
    "tie_word_embeddings": ("tied", _FLAG, True),
    "scale_attn_weights": ("scale_attention", _FLAG, True),
    "scale_attn_by_inverse_layer_idx": ("scale_attention_by_layer", _FLAG, False),
    "reorder_and_upcast_attn": ("upcast_attention", _FLAG, False),
    "embd_pdrop": ("embedding_dropout", _SHARE, 0.1),
    "attn_pdrop": ("attention_dropout", _SHARE, 0.1),
    "resid_pdrop": ("residual_dropout", _SHARE, 0.1),
    "initializer_range": ("initializer_range", _SIZE, 0.02),
    "bos_token_id": ("bos_token", _TOKEN, 50256),
    "eos_token_id": ("eos_token", _TOKENS, 50256),
}
"""Fields of config.json: their name here, what they may hold, and GPT2Config's default."""

_SYNONYMS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

_REFUSED = {
    "add_cross_attention": "a decoder that attends to an encoder is not supported",
    "is_encoder_decoder": "an encoder-decoder is not supported",
    "pruned_heads": "heads that are gone from the arrays are not supported: load and save it with the "
    "transformers 4 that wrote it, after filling them up",
    "quantization_config": "quantized weights are not read: give the model they were made from",
}
"""Fields that are fine while empty or false."""

_BOOKKEEPING = frozenset({
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "_num_labels", "architectures",
    "attn_implementation", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "id2label", "is_decoder", "keys_to_ignore_at_inference", "label2id",
    "length_penalty", "max_length", "min_length", "model_type", "n_ctx", "n_special", "name_or_path",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_past", "output_scores", "pad_token_id",
    "predict_special_tokens", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip
"""Fields that transformers writes and that change no logit."""


def gpt2_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture that a GPT-2's config.json describes.

    Token ids outside the vocabulary, which a shrunken config inherits from GPT-2's defaults, name
    no token and are dropped.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    return _from(values, _BOOKKEEPING)


def gpt3_from(values: dict[str, Any]) -> DecoderConfig:
    """The architecture of a config.json whose `attention_windows` give the window of each layer.

    Raises:
      InputError: as `gpt2_from`; also where `attention_windows` is no list of sizes.
    """
    windows: Any = values.get("attention_windows")
    if not _WINDOWS.accepts(windows):
        raise InputError(f"config.json: attention_windows must be {_WINDOWS.expected}, found {windows!r}.")
    return replace(_from(values, _BOOKKEEPING | {"attention_windows"}), windows=tuple(windows))


def _from(values: dict[str, Any], ignored: frozenset[str]) -> DecoderConfig:
    problems = [f"{n} {values[n]!r}: {why}" for n, why in _REFUSED.items() if values.get(n)]
    given: dict[str, Any] = {}
    for name, value in values.items():
        field = _SYNONYMS.get(name, name)
        if field in _FIELDS:
            if given.setdefault(field, value) != value:
                problems.append(f"{name}: {field} says {given[field]!r}, this says {value!r}")
        elif name not in ignored and name not in _REFUSED:
            problems.append(f"{name}: not known; remove it if it does not change what the model computes")
    fields = {}
    for field, (ours, kind, default) in _FIELDS.items():
        value = given.get(field, default)
        if not kind.accepts(value):
            problems.append(f"{field}: expected {kind.expected}, found {value!r}")
        fields[ours] = value
    shaped = _COUNT.accepts(fields["width"]) and _COUNT.accepts(fields["heads"])
    if shaped and fields["width"] % fields["heads"]:
        problems.append(f"n_embd {fields['width']} must be divisible by n_head {fields['heads']}")
    if problems:
        raise InputError(f"config.json describes no model that can be computed here:\n{listing(problems)}")

    if fields["mlp_width"] is None:
        fields["mlp_width"] = 4 * fields["width"]
    known = fields["vocab_size"]
    ends = fields["eos_token"]
    if isinstance(ends, list):
        fields["eos_token"] = tuple(end for end in ends if end is not None and end < known) or None
    elif ends is not None and ends >= known:
        fields["eos_token"] = None
    if fields["bos_token"] is not None and fields["bos_token"] >= known:
        fields["bos_token"] = None
    return DecoderConfig(**fields)


def gpt2_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a GPT-2."""
    values = {field: getattr(config, ours) for field, (ours, _, _) in _FIELDS.items()}
    if config.mlp_width == 4 * config.width:
        values["n_inner"] = None
    if isinstance(config.eos_token, tuple):
        values["eos_token_id"] = list(config.eos_token)
    # Not read by transformers, but by converters to other formats.
    values["n_ctx"] = config.positions
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **values}


def gpt3_to(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a GPT-2 with banded attention."""
    own = {"model_type": "gpt3", "architectures": ["GPT3LMHeadModel"]}
    return {**gpt2_to(config), **own, "attention_windows": list(config.windows)}


def is_dense(config: DecoderConfig) -> bool:
    """Whether every layer sees all earlier positions, as GPT-2's do."""
    return not any(config.layer_windows)


def layout(config: DecoderConfig) -> Layout:
    """Where GPT-2's tensors belong.

    `Conv1D` stores [inputs, outputs], as kernels here are; `c_attn` holds query, key and value side by
    side along its outputs.
    """
    width, inner = config.width, config.mlp_width
    table = (config.vocab_size, width)
    stored = [
        Stored("transformer.wte.weight", table, ("embedding/tokens",)),
        Stored("transformer.wpe.weight", (config.positions, width), ("embedding/positions",)),
        *(tensor for layer in range(config.layers) for tensor in _block(layer, width, inner)),
        Stored("transformer.ln_f.weight", (width,), ("final_norm/scale",)),
        Stored("transformer.ln_f.bias", (width,), ("final_norm/bias",)),
    ]
    if not config.tied:
        stored.append(Stored("lm_head.weight", table, ("head",)))
    return Layout(
        stored=tuple(stored),
        prefix="transformer.",
        copies=(("lm_head.weight", "transformer.wte.weight"),) if config.tied else (),
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
