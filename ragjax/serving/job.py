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
class Drafted:
    """How the drafts of a text did."""

    passes: int = 0
    """Passes of the model over a draft."""
    drafted: int = 0
    """Tokens that were drafted."""
    accepted: int = 0
    """Those of them that the model kept."""
    written: int = 0
    """Tokens that came of the passes, also behind a stop string."""

    def __add__(self, other: Drafted) -> Drafted:
        return Drafted(
            self.passes + other.passes, self.drafted + other.drafted, self.accepted + other.accepted,
            self.written + other.written,
        )  # fmt: skip


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
    drafted: Drafted = Drafted()
    """How the drafts of the step did; nothing where the model writes alone."""


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
