"""Prompts from a source: those of pairs, texts, or the beginnings of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ragjax.config import Writing
from ragjax.data.sources import documents, pairs, training_split
from ragjax.data.tokenizer import encode_prompts
from ragjax.data.uri import parse_uri
from ragjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 256


class Prompts(NamedTuple):
    """What a model is asked to go on from."""

    texts: list[str]
    left_out: int
    """Those that leave no room for a completion."""


def read_prompts(asked: Writing, tokenizer: PreTrainedTokenizerBase, positions: int) -> Prompts:
    """The prompts of a source that a model with so many positions can complete, in their order.

    Args:
      asked: the source, what of its texts is a prompt, how many, and how long a completion may be.
      tokenizer: the model's.
      positions: the model's.

    Raises:
      InputError: the source cannot be read, or no prompt of it is left.
    """
    room = positions - asked.max_new_tokens
    texts, left_out = [], 0
    for prompt, size in _sized(_texts(asked, tokenizer), tokenizer):
        if size <= room:
            texts.append(prompt)
        else:
            left_out += 1
        if len(texts) == asked.max_prompts:
            break
    if not texts:
        found = f"{left_out} that are longer" if left_out else "none"
        begun = f" of more than {asked.prompt_tokens} tokens" if asked.prompt_tokens else ""
        raise InputError(
            f"{asked.prompts}: expected prompts{begun} of at most {max(room, 0)} tokens, which with "
            f"{asked.max_new_tokens} new ones are the model's {positions} positions, found {found}. Lower "
            "max_new_tokens, or take the beginnings of texts with prompt_tokens"
        )
    return Prompts(texts, left_out)


def _texts(asked: Writing, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    split = asked.split or training_split(asked.prompts, hold_out=False)
    if parse_uri(asked.prompts).of_pairs:
        if asked.prompt_tokens is not None:
            raise InputError(
                f"{asked.prompts}: pairs have prompts of their own: leave prompt_tokens out, or name one "
                "field of texts"
            )
        return (pair.prompt for pair in pairs(asked.prompts, split))
    texts = documents(asked.prompts, split)
    return texts if asked.prompt_tokens is None else _beginnings(texts, tokenizer, asked.prompt_tokens)


def _beginnings(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> Iterator[str]:
    """The first tokens of texts that have more, in whole characters."""
    for _, ids in _encoded(texts, tokenizer):
        if len(ids) <= tokens:
            continue
        text = tokenizer.decode(ids[:tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        if (begun := text.rstrip("\N{REPLACEMENT CHARACTER}")).strip():
            yield begun


def _sized(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
    return ((text, max(len(ids), 1)) for text, ids in _encoded(texts, tokenizer))


def _encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[int]]]:
    texts = iter(texts)
    while several := list(islice(texts, _AT_ONCE)):
        yield from zip(several, encode_prompts(tokenizer, several), strict=True)
