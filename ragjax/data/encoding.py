"""From texts and pairs to tokens, a batch of documents at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ragjax.data.records import Pair, Record
from ragjax.data.tokenizer import encode_prompts, opening

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_BATCH_CHARACTERS = 1 << 20
Parts = TypeVar("Parts", bound=Record)


class Encoded(NamedTuple):
    """Some documents as tokens, and how much text they are."""

    documents: list[list[int]]
    prompts: list[int] | None
    """Tokens of each document before the completion; none: texts."""
    utf8_bytes: int
    words: int


def encoded_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """Texts, each closed by the end-of-text token.

    They begin with the tokens that the tokenizer puts before every text, but for one that closes it too.
    Text that looks like a special token is encoded as the letters it is made of.
    """
    encoder = _encoder(tokenizer)
    first, last = document_ends(tokenizer)
    for batch in _batches((text,) for text in texts):
        encoded = encoder.encode_batch_fast([text for (text,) in batch], add_special_tokens=False)
        yield Encoded([[*first, *one.ids, *last] for one in encoded], None, *_size(batch))


def encoded_pairs(pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """Pairs, each closed by the end-of-text token where its completion ended.

    Both parts are encoded apart: the prompt is what a model is given that is asked to go on from it, special
    tokens and all; the completion is what could follow it, where no tokenizer begins a text anew, and its
    letters are letters. An empty prompt is the token that begins a text.
    """
    encoder = _encoder(tokenizer, going_on=True)
    last = tokenizer.eos_token_id
    start = last if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for batch in _batches(pairs):
        prompts = [ids or [start] for ids in encode_prompts(tokenizer, [pair.prompt for pair in batch])]
        encoded = encoder.encode_batch_fast([pair.completion for pair in batch], add_special_tokens=False)
        yield Encoded(
            [
                [*prompt, *one.ids, *([last] if pair.ended else [])]
                for prompt, one, pair in zip(prompts, encoded, batch, strict=True)
            ],
            [len(prompt) for prompt in prompts],
            *_size(pair[:2] for pair in batch),
        )


def document_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids before and after each text of a corpus."""
    first, last = opening(tokenizer), [tokenizer.eos_token_id]
    return ([] if first == last else first), last


def _encoder(tokenizer: PreTrainedTokenizerBase, *, going_on: bool = False) -> Tokenizer:
    """A copy that neither cuts nor pads, and takes no letters for special tokens.

    Args:
      tokenizer: a fast tokenizer.
      going_on: put no space before a text, as some do with every one.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if going_on:
        state |= {name: _without_space(state[name]) for name in ("normalizer", "pre_tokenizer")}
    encoder = Tokenizer.from_str(json.dumps(state))
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def _without_space(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of a tokenizer that leaves the beginning of a text as it is; none: nothing is left of it."""
    if step is None or step["type"] == "Prepend":
        return None
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    step = step | {name: value for name, value in never.items() if name in step}
    for several in step.keys() & {"normalizers", "pretokenizers"}:
        step[several] = [kept for each in step[several] if (kept := _without_space(each))]
    return step


def _batches(records: Iterable[Parts]) -> Iterator[list[Parts]]:
    batch: list[Parts] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += sum(len(part) for part in record[:2])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _size(records: Iterable[Iterable[str]]) -> tuple[int, int]:
    """UTF-8 bytes and words of the texts that the parts of records make."""
    texts = ["".join(parts) for parts in records]
    return sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
