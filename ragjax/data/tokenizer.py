"""Tokenizers: training byte-level BPEs in GPT-2's format, saving any, telling them apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ragjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's token between documents: its beginning, end and unknown in one."""

_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns a byte-level BPE as GPT-2 has it: every text can be encoded, none is changed by it.

    The 256 bytes come first, then the merges, and `<|endoftext|>` last. Equal texts in equal order
    give equal tokenizers.

    Args:
      texts: documents to learn from, read once.
      vocab_size: tokens in all, at least 257; fewer are learned where the texts have no pair left
        to merge.

    Returns:
      A GPT-2 tokenizer of transformers.

    Raises:
      InputError: `vocab_size` is below 257, or there is no text.

    Reference: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units"; Radford
    et al., "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    if vocab_size < _BYTES + 1:
        raise InputError(
            f"vocab_size must be at least {_BYTES + 1} (the bytes and {END_OF_TEXT}), found {vocab_size}"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted():
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield text

    learner.train_from_iterator(counted(), trainer)
    if not seen:
        raise InputError("expected text to train a tokenizer on, found none")
    model = json.loads(learner.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    # A pair of pieces for each merge, which GPT2Tokenizer takes but does not declare.
    merges = [tuple(pair) for pair in model["merges"]]
    return GPT2Tokenizer(vocab=vocab, merges=cast(list[str], merges))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Writes `tokenizer.json` and its config, and for a byte-level BPE also `vocab.json` and `merges.txt`.

    Args:
      tokenizer: tokenizer of transformers.
      folder: existing folder; files of these names are replaced.
    """
    from tokenizers import decoders, models

    tokenizer.save_pretrained(str(folder))
    if not tokenizer.is_fast:
        return
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, models.BPE) and isinstance(backend.decoder, decoders.ByteLevel):
        backend.model.save(str(folder))


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that the tokenizer puts before every text, as Llama's does; most put none."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    framed = tokenizer.encode("a")
    for start in range(len(framed)):
        if framed[start : start + len(bare)] == bare:
            return framed[:start]
    return []


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, after those its tokenizer puts before every text, and with none behind."""
    if not texts:
        return []
    first = opening(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    # A text that spells them out, as one from a chat template does, has them already.
    return [ids if first and ids[: len(first)] == first else [*first, *ids] for ids in encoded["input_ids"]]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of all that decides which tokens a text becomes.

    Args:
      tokenizer: a fast tokenizer of transformers; its padding and truncation do not count.

    Raises:
      InputError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"expected a fast tokenizer (with tokenizer.json), found {type(tokenizer).__name__}: "
            "load it with AutoTokenizer.from_pretrained(MODEL, use_fast=True) and save it again"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {name: value for name, value in state.items() if name not in ("padding", "truncation")}
    kept["eos"] = tokenizer.eos_token_id
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
