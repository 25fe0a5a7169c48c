"""Texts as OpenAI's protocol tells them: whole, or piece by piece."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

from ragjax.generation.transcript import Ended
from ragjax.serving.job import Drafted, Piece, Token

FINISH: dict[Ended, str] = {"end_token": "stop", "stop_string": "stop", "length": "length"}


@dataclass
class Written:
    """One text so far."""

    prompt: str = ""
    """What it begins with, where the prompt is asked for too."""
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    ended: Ended | None = None
    offset: int = field(init=False)
    """Where its next token is told to begin."""
    times: tuple[float, float] = (0.0, 0.0)
    """When its first token and its last one were there."""
    drafted: Drafted = field(default_factory=Drafted)

    def __post_init__(self) -> None:
        self.offset = len(self.prompt)

    def add(self, piece: Piece) -> None:
        """Takes what came."""
        self.times = (self.times[0] if self.tokens else piece.at, piece.at)
        self.text += piece.text
        self.tokens += piece.tokens
        self.drafted += piece.drafted
        self.ended = piece.ended


class Answer(ABC):
    """How an endpoint tells its texts."""

    whole: str
    """Kind of the object that holds whole texts."""
    part: str
    """Kind of the object that holds a piece."""
    prefix: str
    """What its id begins with."""

    def __init__(
        self,
        model: str,
        token_text: Callable[[int], str],
        token_bytes: Callable[[int], list[int] | None],
        *,
        log_probs: bool,
    ):
        """Tells what a model wrote.

        Args:
          model: its name.
          token_text: how a token is told.
          token_bytes: what it writes.
          log_probs: whether they are told.
        """
        self._shared = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model
        }  # fmt: skip
        self._token_text, self._token_bytes = cache(token_text), cache(token_bytes)
        self._log_probs = log_probs

    def complete(self, texts: Sequence[Written], figures: dict[str, Any]) -> dict[str, Any]:
        """All texts at once, and their figures."""
        choices = [
            self._finished(text) | self._more(index, text.tokens, text.ended, text)
            for index, text in enumerate(texts)
        ]
        return {**self._shared, "object": self.whole, "choices": choices, **figures}

    def opening(self, texts: Sequence[Written], usage: bool) -> list[str]:
        """Events before the first piece."""
        return []

    def event(self, piece: Piece, before: Written, usage: bool) -> str:
        """An event of a stream.

        Args:
          piece: what came.
          before: the text so far.
          usage: whether the stream ends with the number of tokens, and says so in all events.
        """
        more = self._more(piece.index, piece.tokens, piece.ended, before)
        return self._told([self._fresh(piece.text) | more], usage)

    def closing(self, figures: dict[str, Any]) -> str:
        """The event that tells the figures of all texts."""
        return _sent({**self._shared, "object": self.part, "choices": [], **figures})

    def _told(self, choices: list[dict[str, Any]], usage: bool) -> str:
        silent = {"usage": None} if usage else {}
        return _sent({**self._shared, "object": self.part, "choices": choices, **silent})

    def _more(
        self, index: int, tokens: Sequence[Token], ended: Ended | None, text: Written
    ) -> dict[str, Any]:
        told = self._tokens(tokens, text) if self._log_probs else None
        return {"index": index, "logprobs": told, "finish_reason": FINISH[ended] if ended else None}

    @abstractmethod
    def _finished(self, text: Written) -> dict[str, Any]:
        """Where a whole text stands."""

    @abstractmethod
    def _fresh(self, text: str) -> dict[str, Any]:
        """Where a piece stands."""

    @abstractmethod
    def _tokens(self, tokens: Sequence[Token], text: Written) -> dict[str, Any]:
        """Log-probs of the next tokens of a text."""


class Completion(Answer):
    """As `/v1/completions` tells it."""

    whole = part = "text_completion"
    prefix = "cmpl"

    def opening(self, texts: Sequence[Written], usage: bool) -> list[str]:
        return [
            self._told([self._fresh(text.prompt) | self._more(index, [], None, text)], usage)
            for index, text in enumerate(texts)
            if text.prompt
        ]

    def _finished(self, text: Written) -> dict[str, Any]:
        return self._fresh(text.prompt + text.text)

    def _fresh(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _tokens(self, tokens: Sequence[Token], text: Written) -> dict[str, Any]:
        texts = [self._token_text(token.id) for token in tokens]
        *offsets, text.offset = accumulate(map(len, texts), initial=text.offset)
        likeliest = [
            {self._token_text(id): value for id, value in (token.alternatives or {}).items()}
            for token in tokens
        ]
        return {
            "tokens": texts,
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": likeliest if any(likeliest) else None,
            "text_offset": offsets,
        }


class Chat(Answer):
    """As `/v1/chat/completions` tells it."""

    whole, part = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def opening(self, texts: Sequence[Written], usage: bool) -> list[str]:
        first = {"delta": {"role": "assistant", "content": ""}}
        return [
            self._told([first | {"index": index, "logprobs": None, "finish_reason": None}], usage)
            for index in range(len(texts))
        ]

    def _finished(self, text: Written) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text.text, "refusal": None}}

    def _fresh(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _tokens(self, tokens: Sequence[Token], text: Written) -> dict[str, Any]:
        def told(id: int, value: float | None) -> dict[str, Any]:
            return {"token": self._token_text(id), "logprob": value, "bytes": self._token_bytes(id)}

        content = [
            told(token.id, token.log_prob)
            | {"top_logprobs": [told(*pair) for pair in (token.alternatives or {}).items()]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def figures_of(prompt_tokens: int, texts: Sequence[Written], begun: float) -> dict[str, Any]:
    """How many tokens were read and written, how fast, and what became of the drafts, if there were any.

    Args:
      prompt_tokens: tokens of all prompts.
      texts: all of them, whole.
      begun: when they were asked for, by `time.monotonic`.
    """
    written = sum(len(text.tokens) for text in texts)
    first = min(text.times[0] for text in texts)
    seconds = max(text.times[1] for text in texts) - first
    drafted = sum((text.drafted for text in texts), Drafted())
    return {
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
        },
        "timing": {
            "first_token_seconds": first - begun,
            "tokens_per_second": (written - 1) / seconds if seconds else None,
            **(_figures_of_drafts(drafted) if drafted.passes else {}),
        },
    }  # fmt: skip


def _figures_of_drafts(found: Drafted) -> dict[str, Any]:
    return {
        "acceptance_rate": found.accepted / found.drafted if found.drafted else None,
        "tokens_per_pass": found.written / found.passes,
    }


def failure_event(body: dict[str, Any]) -> str:
    """The event that ends a stream which cannot go on."""
    return _sent(body)


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
