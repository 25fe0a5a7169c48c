"""What every schema does when it is built: looks for problems, and tells them all at once."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ragjax.errors import InputError, listing


class Checked:
    """Reports every problem at once when the dataclass is built: words its fields have no use for, and what
    `_problems()` finds."""

    def _problems(self) -> list[str]:
        return []

    def __post_init__(self) -> None:
        found = _misspelt(self)
        try:
            found += self._problems()
        except TypeError:
            # Of what is told already.
            if not found:
                raise
        if found:
            raise InputError(f"{type(self).__name__}: cannot be used:\n{listing(found)}")


def at_least(owner: object, low: float, *names: str) -> list[str]:
    """Problems of fields that must not be below `low`, nor NaN."""
    return [
        f"{name} must be at least {low:g}, found {getattr(owner, name)!r}"
        for name in names
        if not getattr(owner, name) >= low
    ]


def below_one(owner: object, *names: str) -> list[str]:
    """Problems of fields that must lie in [0, 1)."""
    return [
        f"{name} must be at least 0 and below 1, found {getattr(owner, name)!r}"
        for name in names
        if not 0 <= getattr(owner, name) < 1
    ]


def _misspelt(owner: object) -> list[str]:
    """Problems of fields that are to be one of a few words, or hold such words."""
    kind: Any = type(owner)
    return [
        f"{name} must be one of {', '.join(_allowed(hint))}, found {getattr(owner, name)!r}"
        for name, hint in _of_words(kind).items()
        if not _fits(getattr(owner, name), hint)
    ]


@cache
def _of_words(kind: type) -> dict[str, Any]:
    """The types of the fields of `kind` that allow for words."""
    return {name: hint for name, hint in get_type_hints(kind).items() if _words(hint)}


def _words(hint: Any) -> tuple[Any, ...]:
    """The words that `Literal` allows anywhere in a type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) for word in _words(part))


def _allowed(hint: Any) -> list[str]:
    """What may stand in a field, for people."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [word for part in get_args(hint) for word in _allowed(part)]
    if _words(hint):
        return [str(word) for word in _words(hint)]
    return ["None" if hint is NoneType else str(hint)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether all words of `value` are those of its type; what is no word is taken as it is."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if hint is NoneType:
        return value is None
    return hint is str or not isinstance(value, str)
