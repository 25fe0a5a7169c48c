"""Requests that come and go while a batch runs: each has a slot of its own, and none waits for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Int

from ragjax.config import Decoding
from ragjax.generation.log_probs import LogProbs

MOST_ALTERNATIVES = 20
"""Likeliest tokens that can be told in place of each token: OpenAI's chat tells as many."""


class Drafts(NamedTuple):
    """How the drafts of a step did."""

    passes: Int[Array, " slots"]
    """Passes of the model over a draft, in each slot that had not ended."""
    drafted: Int[Array, " slots"]
    """Tokens that were drafted."""
    accepted: Int[Array, " slots"]
    """Those of them that the model kept."""


class Stepped(NamedTuple):
    """What a step wrote, on the host."""

    tokens: Int[np.ndarray, "slots new"]
    """New tokens of each slot from the first column on; -1 where it has no more."""
    log_probs: LogProbs | None
    """Of the tokens, as [slots, new]; none where no request in a slot asks for them."""
    drafts: Drafts | None = None
    """None where the model writes alone."""


class Slots(Protocol):
    """A batch of fixed size in which each place serves one request at a time.

    The tokens of a request are those that `continuations` writes of it alone, with the same draft if there
    is one: the same ones greedily, and drawn the same ones by the same seed and row, whatever the other
    slots do. One thread uses it.
    """

    count: int
    """Slots, numbered from 0."""
    room: int
    """Tokens a slot holds, prompt and new ones together."""

    def warm(self) -> None:
        """Compiles all that requests will need; every slot must be free, and is so afterwards."""

    def join(self, slot: int, prompt: Sequence[int], options: Decoding, row: int = 0) -> None:
        """Reads a prompt into a free slot; its first token comes with the next step.

        Args:
          slot: a free one.
          prompt: token ids, at least one, checked by `ragjax.generation.prompts.complete`; together with
            `options.max_new_tokens` not more than `room`.
          options: how tokens are chosen. Beams are not served, stop strings are the caller's to look for,
            and `cache_dtype` is the slots' own.
          row: number by which the request draws.
        """

    def step(self, most: int = 1) -> Stepped:
        """Writes on in every slot that is taken and has not ended.

        A slot ends at its last token: an end token or `options.max_new_tokens`. It stays taken, and writes
        nothing, until it is left.

        Args:
          most: tokens each slot writes at most, at least 1; it may write fewer, and at first writes one. With
            a draft, which may be kept whole, it may write a few more.
        """

    def leave(self, slot: int) -> None:
        """Frees a slot, whether it has ended or not."""
