"""The name of a text source, taken apart."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from ragjax.errors import InputError

FORMS = {
    "builtin": "builtin:python",
    "text": "text:GLOB",
    "jsonl": "jsonl:PATH#field",
    "tfds": "tfds:NAME/split#field",
    "hf": "hf:NAME/split#field",
}
"""How the URI of each scheme is written."""

_WITH_FIELD = ("jsonl", "tfds", "hf")
_PAIR = "prompt,completion or prompt,completion,ended"
_HUB_SPLIT = re.compile(r"(train|validation|test)(\W.*)?")


@dataclass(frozen=True)
class Source:
    """A text source.

    Attributes:
      uri: as it was written.
      scheme: a key of `FORMS`.
      location: file pattern, or name of the data set.
      split: split named by the URI itself; none where it names none.
      fields: those of a record that are read: a text; or a prompt, its completion and, where there is a
        third, whether that ended.
    """

    uri: str
    scheme: str
    location: str
    split: str | None = None
    fields: tuple[str, ...] = ("text",)

    @property
    def of_pairs(self) -> bool:
        """Whether a record is a prompt and its completion, and not a text."""
        return len(self.fields) > 1


def parse_uri(uri: str) -> Source:
    """Takes a source URI apart.

    Args:
      uri: one of `FORMS`; the field is `text` where none is given, and two or three with commas between
        them make it a source of pairs. A data set of the hub is `name`, `owner/name` or either with
        `:configuration`, before `/split`.

    Returns:
      The source; nothing is opened.

    Raises:
      InputError: the scheme is unknown, what follows it is empty, or the fields make no pair.

    Example:
      >>> source = parse_uri("tfds:glue/sst2/train#sentence")
      >>> source.location, source.split, source.fields
      ('glue/sst2', 'train', ('sentence',))
      >>> parse_uri("jsonl:dolly.jsonl#prompt,completion").of_pairs
      True
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in FORMS:
        raise InputError(_unknown(uri, scheme if colon else ""))
    fields: tuple[str, ...] = ("text",)
    if scheme in _WITH_FIELD:
        rest, mark, named = rest.rpartition("#") if "#" in rest else (rest, "", "")
        if mark and not named:
            raise InputError(f"{uri}: expected the name of a field after '#', as in {FORMS[scheme]}")
        fields = tuple(named.split(",")) if mark else fields
        if not all(fields) or len(fields) > 3 or len(set(fields)) < len(fields):
            raise InputError(
                f"{uri}: expected one field, or those of pairs, {_PAIR}, after '#', found {named!r}"
            )
    location, split = rest, None
    head, slash, tail = rest.rpartition("/")
    if slash and (
        scheme in ("builtin", "tfds") or (scheme == "hf" and _HUB_SPLIT.fullmatch(tail) is not None)
    ):
        location, split = head, tail
    if not location or split == "":
        raise InputError(f"{uri}: incomplete; expected {FORMS[scheme]}")
    return Source(uri=uri, scheme=scheme, location=location, split=split, fields=fields)


def check_alike(train: str, validation: str | None) -> None:
    """Refuses sources of a training of which one is of pairs and the other of texts, or unreadable.

    Raises:
      InputError: they are; or as `parse_uri`.
    """
    kinds = {uri: parse_uri(uri).of_pairs for uri in (train, validation) if uri is not None}
    if len(set(kinds.values())) > 1:
        pairs, texts = sorted(kinds, key=lambda uri: not kinds[uri])
        raise InputError(
            f"{pairs} is a source of pairs, {texts} one of texts: train and validate on sources of one kind"
        )


def _unknown(uri: str, scheme: str) -> str:
    message = f"{uri!r} names no text source; expected one of {', '.join(FORMS.values())}"
    near = difflib.get_close_matches(scheme, FORMS, n=1, cutoff=0.5)
    if near:
        return f"{message}. Did you mean {near[0]}:{uri.partition(':')[2]}?"
    if uri and Path(uri).expanduser().exists():
        scheme = "jsonl" if uri.endswith((".jsonl", ".ndjson")) else "text"
        return f"{message}. The file exists: write {scheme}:{uri}"
    return message
