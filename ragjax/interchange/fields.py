"""Fields of config.json: what each may hold, and every complaint about them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ragjax.errors import InputError, listing
from ragjax.models.activations import ACTIVATIONS
from ragjax.models.decoder_config import DecoderConfig


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Kind(NamedTuple):
    """What a field of config.json may hold."""

    expected: str
    accepts: Callable[[Any], bool]


COUNT = Kind("a whole number of at least 1", lambda v: is_whole(v) and v >= 1)
COUNT_OR_NONE = Kind(f"{COUNT.expected}, or null", lambda v: v is None or COUNT.accepts(v))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
SHARE = Kind("a number of at least 0 and below 1", lambda v: is_real(v) and 0 <= v < 1)
SIZE = Kind("a number of at least 0", lambda v: is_real(v) and 0 <= v < float("inf"))
ACTIVATION = Kind(f"one of {', '.join(ACTIVATIONS)}", lambda v: isinstance(v, str) and v in ACTIVATIONS)
TOKEN = Kind("a token id, or null", lambda v: v is None or (is_whole(v) and v >= 0))
TOKENS = Kind(
    "a token id, a list of them, or null",
    lambda v: all(map(TOKEN.accepts, v)) if isinstance(v, list) else TOKEN.accepts(v),
)


class Field(NamedTuple):
    """A field of config.json that changes what is computed."""

    ours: str
    """Its name in `DecoderConfig`."""
    kind: Kind
    default: Any
    """What the family's config class in transformers has where config.json has none."""


BOOKKEEPING = frozenset({
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

REFUSED = {
    "add_cross_attention": "a decoder that attends to an encoder is not supported",
    "is_encoder_decoder": "an encoder-decoder is not supported",
    "pruned_heads": "heads that are gone from the arrays are not supported: load and save it with the "
    "transformers 4 that wrote it, after filling them up",
    "quantization_config": "quantized weights are not read: give the model they were made from",
}
"""Fields that are fine while empty or false, and what no family supports otherwise."""


def read_fields(
    values: Mapping[str, Any],
    fields: Mapping[str, Field],
    *,
    synonyms: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    ignored: frozenset[str] = BOOKKEEPING,
    check: Callable[[dict[str, Any]], list[str]] = lambda found: [],
    source: str = "config.json",
) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that a config.json, or the like of it, states.

    Token ids outside the vocabulary, which a shrunken config inherits from its family's defaults, name
    no token and are dropped.

    Args:
      values: config.json.
      fields: the family's fields, by their name in config.json.
      synonyms: other names of fields.
      refused: fields that are fine while empty or false, and why not otherwise.
      ignored: fields that change nothing.
      check: complaints about fields that do not fit together, from the values, by our names, of those
        that are right by themselves.
      source: what complaints call it.

    Raises:
      InputError: names every field that is wrong, unknown, or asks for what is not supported.
    """
    synonyms, refused = synonyms or {}, refused or {}
    problems = [f"{n} {values[n]!r}: {why}" for n, why in refused.items() if values.get(n)]
    given: dict[str, Any] = {}
    for name, value in values.items():
        main = synonyms.get(name, name)
        if main in fields:
            if given.setdefault(main, value) != value:
                problems.append(f"{name}: {main} says {given[main]!r}, this says {value!r}")
        elif name not in ignored and name not in refused:
            problems.append(f"{name}: not known; remove it if it does not change what the model computes")
    found = {}
    for name, field in fields.items():
        value = given.get(name, field.default)
        if field.kind.accepts(value):
            found[field.ours] = value
        else:
            problems.append(f"{name}: expected {field.kind.expected}, found {value!r}")
    problems += check(found)
    if problems:
        raise InputError(f"{source} describes no model that can be computed here:\n{listing(problems)}")
    return found | _known_tokens(found)


def _known_tokens(found: dict[str, Any]) -> dict[str, Any]:
    known, kept = found["vocab_size"], {}
    for name in ("bos_token", "eos_token"):
        value = found.get(name)
        if isinstance(value, list):
            kept[name] = tuple(token for token in value if token is not None and token < known) or None
        else:
            kept[name] = value if value is not None and value < known else None
    return kept


def token_values(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json that name tokens."""
    ends = config.eos_token
    return {
        "bos_token_id": config.bos_token,
        "eos_token_id": list(ends) if isinstance(ends, tuple) else ends,
    }
