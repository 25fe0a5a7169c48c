"""Text named by a URI: the documents or pairs of a source, whole or split for training and validation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from ragjax.data.files import files_digest, jsonl_records, text_records
from ragjax.data.hub import hub_digest, hub_records
from ragjax.data.python_prose import python_prose, python_prose_digest
from ragjax.data.records import Pair, Record
from ragjax.data.tfds import tfds_digest, tfds_records
from ragjax.data.uri import Source, parse_uri
from ragjax.errors import InputError

Split = Literal["train", "validation"]

_VALIDATION_ONE_IN = 10


class _Reader(NamedTuple):
    records: Callable[[Source], Iterator[Record]]
    digest: Callable[[Source], str]


_READERS: dict[str, _Reader] = {
    "builtin": _Reader(
        lambda source: ((text,) for text in python_prose()), lambda source: python_prose_digest()
    ),
    "text": _Reader(text_records, files_digest),
    "jsonl": _Reader(jsonl_records, files_digest),
    "tfds": _Reader(tfds_records, tfds_digest),
    "hf": _Reader(hub_records, hub_digest),
}


def documents(uri: str, split: Split | None = None) -> Iterator[str]:
    """The documents of a source, in a fixed order.

    A split goes by document, by a hash of its words: about one in ten is held out, and a document
    stays on its side when others come or go, whatever its place. Texts that differ in white space
    alone stay together. Where the hash holds out none, the document with the lowest hash is. Pairs go by
    the words of their prompt, so that all completions of one stay together.

    Args:
      uri: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME/split#field.
      split: the side of the split; none: all documents, but of a bare builtin:python its validation
        side, which is what an evaluation wants. builtin:python/train and builtin:python/validation
        name a side themselves.

    Returns:
      Texts that are not blank, read as they are asked for; of pairs, prompt and completion as one text.

    Raises:
      InputError: the source is unknown, cannot be read, holds no text, or too little to be split.
        Problems in the data are raised all together when the source has been read.
    """
    return ("".join(record[:2]) for record in _records(parse_uri(uri), split))


def pairs(uri: str, split: Split | None = None) -> Iterator[Pair]:
    """The prompts and completions of a source, in a fixed order, split as in `documents`.

    Args:
      uri: jsonl:PATH#prompt,completion, or any other source with two fields; or with three, of which the
        last says whether the text ends with the completion.
      split: as in `documents`.

    Raises:
      InputError: as `documents`; the source is one of texts; a completion is blank.
    """
    source = parse_uri(uri)
    if not source.of_pairs:
        raise InputError(
            f"{uri}: expected prompts and completions, found a text: name both fields, as in "
            "jsonl:PATH#prompt,completion"
        )
    return (record for record in _records(source, split) if isinstance(record, Pair))


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


def _records(source: Source, split: Split | None) -> Iterator[Record]:
    split = side(source, split)
    # A blank text is nothing to read; of a pair it is the prompt, which begins the text.
    found = (each for each in _READERS[source.scheme].records(source) if source.of_pairs or each[0].strip())
    records = _not_empty(source, found)
    return records if split is None else _one_side(source, records, split)


def _one_side(source: Source, records: Iterator[Record], split: Split) -> Iterator[Record]:
    counts = Counter[Split]()
    for belongs, record in _sides(records):
        counts[belongs] += 1
        if belongs == split:
            yield record
    if len(counts) == 1:
        raise InputError(
            f"{source.uri}: cannot be split into training and validation: a document is never cut, and all "
            f"of them ({counts.total()}) fall on one side. Set data.validation to a source of its own"
        )


def _sides(records: Iterator[Record]) -> Iterator[tuple[Split, Record]]:
    """Every record with its side, in one pass.

    Until one is held out by its hash, that with the lowest hash may have to be: it waits.
    """
    waiting: list[Record] = []
    lowest, held_out = 0, False
    for record in records:
        place = _hash(record[0])
        if place % _VALIDATION_ONE_IN == 0:
            held_out = True
            yield from (("train", late) for late in waiting)
            waiting = []
            yield "validation", record
        elif held_out or (waiting and place > lowest):
            yield "train", record
        elif waiting and place == lowest:
            waiting.append(record)
        else:
            yield from (("train", late) for late in waiting)
            waiting, lowest = [record], place
    yield from (("validation", late) for late in waiting)


def _hash(text: str) -> int:
    words = " ".join(text.split())
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def _not_empty(source: Source, records: Iterator[Record]) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise InputError(f"{source.uri}: holds no text")
