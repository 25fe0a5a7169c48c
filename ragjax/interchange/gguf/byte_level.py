"""Byte-level BPE in GGUF (`tokenizer.ggml.model` "gpt2"): tokens, merges, and how words are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragjax.errors import InputError
from ragjax.interchange.gguf.splits import PROBE, SPLITS, SYNONYMS, Split
from ragjax.interchange.gguf.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def split_of(metadata: dict[str, Any]) -> Split:
    """How a file's tokenizer cuts words.

    Raises:
      InputError: in a way that is not known.
    """
    stated = metadata.get("tokenizer.ggml.pre", "default")
    name = SYNONYMS.get(stated, stated)
    if name not in SPLITS:
        known = ", ".join(sorted({*SPLITS, *SYNONYMS}))
        raise InputError(
            f"The GGUF file's metadata: tokenizer.ggml.pre must be one of {known}, found {stated!r}: give "
            "the model as a Hugging Face folder."
        )
    return SPLITS[name]


def read_byte_level(metadata: dict[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a file, without its special tokens.

    Raises:
      InputError: its words are cut in a way that is not known, or it has no merges.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    split, merges = split_of(metadata), metadata.get("tokenizer.ggml.merges")
    pairs = [str(merge).split(" ") for merge in merges] if isinstance(merges, list) else [[]]
    if not all(len(pair) == 2 for pair in pairs):
        raise InputError(
            "The GGUF file's metadata: tokenizer.ggml.merges must be a list of two tokens with a space "
            "between."
        )
    made = Tokenizer(
        models.BPE(vocab=vocabulary.ids(), merges=[(a, b) for a, b in pairs], ignore_merges=split.whole_words)
    )
    made.normalizer = normalizers.NFC() if split.composed else None
    made.pre_tokenizer = split.pre_tokenizer()
    made.decoder = decoders.ByteLevel()
    return made


def write_byte_level(tokenizer: Tokenizer, merges: list[str], *, whole_words: bool) -> dict[str, Any]:
    """The metadata of a tokenizer, besides its tokens.

    Args:
      tokenizer: a byte-level BPE.
      merges: its merges, each two tokens with a space between.
      whole_words: whether a word that is a token needs no merges to become one.

    Raises:
      InputError: it cuts words in a way that GGUF has no name for, or merges nothing.
    """
    if not merges:
        raise InputError("The tokenizer has no merges, which llama.cpp refuses: train one with more tokens.")
    theirs = tokenizer.pre_tokenizer and _words(tokenizer.pre_tokenizer)
    name = next((n for n, split in SPLITS.items() if _words(split.pre_tokenizer()) == theirs), None)
    if name is None:
        raise InputError(
            f"The tokenizer cuts words otherwise than those that GGUF has names for here "
            f"({', '.join(SPLITS)}): export the model in another format."
        )
    if whole_words and not SPLITS[name].whole_words:
        raise InputError(
            f"The tokenizer takes a word that is a token whole (ignore_merges), which {name} in GGUF does "
            "not: export the model in another format."
        )
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}


def _words(pre_tokenizer: Any) -> list[str]:
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(PROBE)]
