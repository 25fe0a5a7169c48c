"""One continuation as it is written: its tokens, its text, and why it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from ragjax.generation.detokenize import Detokenizer
from ragjax.generation.stopping import StopStrings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ended: TypeAlias = Literal["end_token", "stop_string", "length"]
"""Why a text ends: a token, a string, or as many tokens as were asked for."""


class Transcript:
    """Takes tokens one by one, until the text ends."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        prompt: Sequence[int],
        *,
        limit: int,
        ends: Collection[int] = (),
        stop: Sequence[str] = (),
    ):
        """Begins after `prompt`.

        Args:
          tokenizer: makes text of tokens; none: there is no text.
          prompt: token ids before the first.
          limit: tokens after which the text ends.
          ends: token ids that end the text.
          stop: strings that end the text.
        """
        self.tokens: list[int] = []
        self.text: str | None = None if tokenizer is None else ""
        """All that `push` handed on."""
        self.ended: Ended | None = None
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, prompt=prompt)
        self._stop = StopStrings(stop)
        self._limit, self._ends = limit, ends

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that is now certain, which may be empty."""
        self.tokens.append(token)
        if token in self._ends:
            self.ended = "end_token"
        elif len(self.tokens) == self._limit:
            self.ended = "length"
        if self._detokenizer is None or self.text is None:
            return ""
        piece = self._written(self._detokenizer, token)
        self.text += piece
        return piece

    def _written(self, detokenizer: Detokenizer, token: int) -> str:
        piece = detokenizer.push(token)
        if self.ended:
            piece += detokenizer.finish()
        piece = self._stop.push(piece)
        if self._stop.met:
            self.ended = "stop_string"
        elif self.ended:
            piece += self._stop.finish()
        return piece
