"""What is read of a record: a text, or a pair of a prompt and its completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ragjax.data.uri import Source


class Pair(NamedTuple):
    """A prompt and what is to follow it; the text of both is one right after the other."""

    prompt: str
    completion: str
    ended: bool = True
    """Whether the text ends with the completion; else there was more, which is not known."""


Record = tuple[str] | Pair
"""A text alone, or a pair."""


def record(source: Source, values: Mapping[str, Any]) -> Record:
    """The record with these values in its fields, of which `record_problems` found none."""
    first, *others = (values[name] for name in source.fields)
    return Pair(first, *others) if others else (first,)


def record_problems(source: Source, values: Mapping[str, Any]) -> list[str]:
    """What keeps the values of the fields from being a text, or a pair; a line for each."""
    found = []
    for name in source.fields[:2]:
        value = values[name]
        if not isinstance(value, str):
            found.append(f"field {name!r} must be a string, found {type(value).__name__}")
        elif not _encodable(value):
            found.append(f"field {name!r} holds half a surrogate pair, which is no text")
        elif name in source.fields[1:] and not value.strip():
            found.append(f"field {name!r} is blank: a pair needs a completion to learn")
    for name in source.fields[2:]:
        if not isinstance(values[name], bool):
            found.append(f"field {name!r} must be true or false, found {type(values[name]).__name__}")
    return found


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
