"""Text named by a URI: the documents of a source, whole or split for training and validation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from ragjax.data.files import files_digest, jsonl_documents, text_documents
from ragjax.data.hub import hub_digest, hub_documents
from ragjax.data.python_prose import python_prose, python_prose_digest
from ragjax.data.tfds import tfds_digest, tfds_documents
from ragjax.data.uri import Source, parse_uri
from ragjax.errors import InputError

Split = Literal["train", "validation"]

_VALIDATION_ONE_IN = 10


class _Reader(NamedTuple):
    documents: Callable[[Source], Iterator[str]]
    digest: Callable[[Source], str]


_READERS: dict[str, _Reader] = {
    "builtin": _Reader(lambda source: python_prose(), lambda source: python_prose_digest()),
    "text": _Reader(text_documents, files_digest),
    "jsonl": _Reader(jsonl_documents, files_digest),
    "tfds": _Reader(tfds_documents, tfds_digest),
    "hf": _Reader(hub_documents, hub_digest),
}


def documents(uri: str, split: Split | None = None) -> Iterator[str]:
    """The documents of a source, in a fixed order.

    A split goes by document, by a hash of its words: about one in ten is held out, and a document
    stays on its side when others come or go, whatever its place. Texts that differ in white space
    alone stay together. Where the hash holds out none, the document with the lowest hash is.

    Args:
      uri: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME/split#field.
      split: the side of the split; none: all documents, but of a bare builtin:python its validation
        side, which is what an evaluation wants. builtin:python/train and builtin:python/validation
        name a side themselves.

    Returns:
      Texts that are not blank, read as they are asked for.

    Raises:
      InputError: the source is unknown, cannot be read, holds no text, or too little to be split.
        Problems in the data are raised all together when the source has been read.
    """
    source = parse_uri(uri)
    split = side(source, split)
    texts = _not_empty(source, _READERS[source.scheme].documents(source))
    return texts if split is None else _one_side(source, texts, split)


def digest(source: Source) -> str:
    """A hash of the content of `source`, without taking it apart into documents."""
    return _READERS[source.scheme].digest(source)


def side(source: Source, split: Split | None) -> Split | None:
    """The side of the split that `documents` reads.

    Raises:
      InputError: a builtin source is unknown, or names another side than `split`.
    """
    if source.scheme != "builtin":
        return split
    sides: dict[str | None, Split | None] = {None: None, "train": "train", "validation": "validation"}
    if source.location != "python" or source.split not in sides:
        raise InputError(
            f"{source.uri}: unknown; expected builtin:python, builtin:python/train or "
            "builtin:python/validation"
        )
    named = sides[source.split]
    if named and split and named != split:
        raise InputError(
            f"{source.uri} is one side of a split and has no {split} documents: write builtin:python, "
            "which splits itself, or set data.validation"
        )
    return named or split or "validation"


def training_split(uri: str, *, hold_out: bool) -> Split | None:
    """The split to ask for when `uri` is trained on.

    Args:
      uri: the source.
      hold_out: whether documents are to be left for validation; a bare builtin:python always leaves them.
    """
    source = parse_uri(uri)
    splits_itself = source.scheme == "builtin" and source.split is None
    return "train" if hold_out or splits_itself else None


def _one_side(source: Source, texts: Iterator[str], split: Split) -> Iterator[str]:
    counts = Counter[Split]()
    for belongs, text in _sides(texts):
        counts[belongs] += 1
        if belongs == split:
            yield text
    if len(counts) == 1:
        raise InputError(
            f"{source.uri}: cannot be split into training and validation: a document is never cut, and all "
            f"of them ({counts.total()}) fall on one side. Set data.validation to a source of its own"
        )


def _sides(texts: Iterator[str]) -> Iterator[tuple[Split, str]]:
    """Every text with its side, in one pass.

    Until one is held out by its hash, the text with the lowest hash may have to be: it waits.
    """
    waiting: list[str] = []
    lowest, held_out = 0, False
    for text in texts:
        place = _hash(text)
        if place % _VALIDATION_ONE_IN == 0:
            held_out = True
            yield from (("train", late) for late in waiting)
            waiting = []
            yield "validation", text
        elif held_out or (waiting and place > lowest):
            yield "train", text
        elif waiting and place == lowest:
            waiting.append(text)
        else:
            yield from (("train", late) for late in waiting)
            waiting, lowest = [text], place
    yield from (("validation", late) for late in waiting)


def _hash(text: str) -> int:
    words = " ".join(text.split())
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def _not_empty(source: Source, texts: Iterator[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        raise InputError(f"{source.uri}: holds no text")
