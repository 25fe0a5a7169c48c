"""The tokenizer in a GGUF file, in and out."""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ragjax.errors import InputError, listing
from ragjax.interchange.gguf.byte_level import read_byte_level, split_of, write_byte_level
from ragjax.interchange.gguf.sentencepiece import is_byte, read_sentencepiece, write_sentencepiece
from ragjax.interchange.gguf.splits import PROBE
from ragjax.interchange.gguf.vocabulary import Kind, read_vocabulary, write_vocabulary

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_NONE = (None, "none", "no_vocab")
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Tokens with a role: in transformers, and in keys of the file."""


def read_gguf_tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast | None:
    """The tokenizer that a file's metadata describes; none where it has none.

    Raises:
      InputError: it is of a kind that is not known, or damaged.
    """
    from transformers import PreTrainedTokenizerFast

    kind = metadata.get("tokenizer.ggml.model")
    if kind in _NONE:
        return None
    if kind not in ("gpt2", "llama"):
        raise InputError(
            f"The GGUF file's metadata: tokenizer.ggml.model must be gpt2, llama or none, found {kind!r}: "
            "give the model as a Hugging Face folder."
        )
    vocabulary = read_vocabulary(metadata)
    read = read_byte_level if kind == "gpt2" else read_sentencepiece
    try:
        made = read(metadata, vocabulary)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"The GGUF file's tokenizer is damaged: {error}") from None
    # At once: adding one at a time builds the matcher anew for each.
    made.add_special_tokens([_added(t, True) for t in vocabulary.of_kind(Kind.CONTROL, Kind.UNKNOWN)])
    made.add_tokens([_added(t, False) for t in vocabulary.of_kind(Kind.USER_DEFINED)])
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED.items()}
    roles = {
        name: vocabulary.tokens[i]
        for name, i in ids.items()
        if isinstance(i, int) and i < len(vocabulary.tokens)
    }
    begins = kind == "llama" or split_of(metadata).begins
    around = {
        "bos_token": metadata.get("tokenizer.ggml.add_bos_token", begins),
        "eos_token": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    _surround(made, *(roles.get(name) if wanted else None for name, wanted in around.items()))
    template = metadata.get("tokenizer.chat_template")
    extra = {"chat_template": template} if isinstance(template, str) else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **roles, **extra
    )


def _added(token: str, special: bool) -> AddedToken:
    from tokenizers import AddedToken

    return AddedToken(token, special=special, normalized=False)


def _surround(tokenizer: Any, first: str | None, last: str | None) -> None:
    """Has a tokenizer put tokens before and after each text."""
    from tokenizers import processors

    named = [token for token in (first, last) if token is not None]
    if not named:
        return
    before, after = ([token] if token is not None else [] for token in (first, last))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(named)],
    )


def write_gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """The metadata that describes a tokenizer.

    What is written is read back and tried on a text of all sorts: a tokenizer that would come out as
    another is refused.

    Args:
      tokenizer: a fast tokenizer of transformers.
      size: tokens the model knows; ids without a token are filled up.

    Raises:
      InputError: GGUF has no way to say what the tokenizer does.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"A fast tokenizer (with tokenizer.json) was expected, found {type(tokenizer).__name__}."
        )
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    model, added = state["model"], state["added_tokens"]
    if model["type"] != "BPE":
        raise InputError(
            f"GGUF is written with BPE tokenizers here, found {model['type']}: use another format."
        )
    if stripping := [t["content"] for t in added if t["lstrip"] or t["rstrip"] or t["single_word"]]:
        raise InputError(
            "Added tokens that take the spaces around them along, or match whole words only, have no place "
            f"in GGUF: {', '.join(stripping[:8])}. Export the model in another format."
        )
    kinds = {token["content"]: Kind.CONTROL if token["special"] else Kind.USER_DEFINED for token in added}
    pieces = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        kinds |= {token: Kind.BYTE for token in model["vocab"] if is_byte(token)}
        if model.get("unk_token"):
            kinds[model["unk_token"]] = Kind.UNKNOWN
        vocabulary = write_vocabulary(tokenizer.get_vocab(), kinds, size)
        metadata = write_sentencepiece(backend, vocabulary, pieces)
    else:
        vocabulary = write_vocabulary(tokenizer.get_vocab(), kinds, size)
        whole_words = bool(model.get("ignore_merges"))
        metadata = write_byte_level(backend, [f"{a} {b}" for a, b in pieces], whole_words=whole_words)
    metadata |= {"tokenizer.ggml.tokens": vocabulary.tokens, "tokenizer.ggml.token_type": vocabulary.kinds}
    for name, key in _NAMED.items():
        if (token := getattr(tokenizer, f"{name}_id")) is not None:
            metadata[f"tokenizer.ggml.{key}_token_id"] = token
    if isinstance(tokenizer.chat_template, str):
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    metadata |= _around(tokenizer)
    _check_same(tokenizer, metadata, [token["content"] for token in added])
    return metadata


def _around(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether texts begin and end with a token of their own."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    for begins in (False, True):
        for ends in (False, True):
            first = [tokenizer.bos_token_id] if begins else []
            last = [tokenizer.eos_token_id] if ends else []
            if whole == [*first, *bare, *last]:
                return {"tokenizer.ggml.add_bos_token": begins, "tokenizer.ggml.add_eos_token": ends}
    raise InputError(
        f"The tokenizer turns 'a' into {tokenizer.convert_ids_to_tokens(whole)}: in GGUF nothing but its "
        "beginning- and end-of-text tokens can stand around a text."
    )


def _check_same(tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any], added: list[str]) -> None:
    back = read_gguf_tokenizer(metadata)
    assert back is not None
    bad = []
    for text in (PROBE, *added):
        ours, theirs = (each.convert_ids_to_tokens(each.encode(text)) for each in (tokenizer, back))
        if ours != theirs:
            pairs = zip_longest(ours, theirs)
            at = next(i for i, (one, other) in enumerate(pairs) if one != other)
            bad.append(f"{ours[at : at + 4]} would become {theirs[at : at + 4]}")
    if bad:
        raise InputError(
            f"GGUF cannot say all that the tokenizer does:\n{listing(bad)}\nExport the model in another "
            "format."
        )
