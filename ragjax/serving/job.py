"""One text that is to be written, and what its asker hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ragjax.config import Decoding
from ragjax.generation.transcript import Ended, Transcript


@dataclass(frozen=True)
class Token:
    """A new token."""

    id: int
    log_prob: float | None = None
    """Under the model itself, where asked for."""
    alternatives: dict[int, float] | None = None
    """The likeliest tokens in its place and their log-probs, likeliest first."""


@dataclass(frozen=True)
class Piece:
    """What a step added to a text."""

    index: int
    """Number of the text among those of its request."""
    text: str
    tokens: Sequence[Token]
    ended: Ended | None
    at: float = 0.0
    """When it was there, by `time.monotonic`."""


@dataclass(frozen=True)
class Dropped:
    """A text that will not be finished."""

    index: int
    why: Literal["cancelled", "timeout", "error"]


Event: TypeAlias = Piece | Dropped


@dataclass(eq=False)
class Job:
    """A text to write. Pieces come until one has ended, or until it is dropped."""

    index: int
    """Number of the text among those of its request, and the row by which it draws."""
    prompt: Sequence[int]
    options: Decoding
    transcript: Transcript
    deadline: float
    """When it is dropped, by `time.monotonic`."""
    tell: Callable[[Event], None]
    """Called from the thread that writes."""
    cancelled: bool = False
    asked: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    """When it got a slot."""
    last: float | None = None
    """When its last token came."""

    def dropped(self) -> Literal["cancelled", "timeout"] | None:
        """Why it should not go on, if it should not."""
        if self.cancelled:
            return "cancelled"
        return "timeout" if time.monotonic() > self.deadline else None
