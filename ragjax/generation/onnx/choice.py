"""The choice of tokens where the scores are on the host: of the likeliest by numpy, else by JAX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ragjax.generation import log_probs
from ragjax.generation.decoding import Settings, State, add_token
from ragjax.generation.request import Request
from ragjax.generation.writer import Written, ended
from ragjax.parallel.hosts import to_host


class Choice(Protocol):
    """New tokens of a batch, one more at a time."""

    written: int
    """How many each sequence has."""
    last: Int[np.ndarray, " batch"]
    """The last ones."""
    done: Bool[np.ndarray, " batch"]
    """Which sequences have ended; they repeat their last token."""

    def add(self, scores: Float[np.ndarray, "batch vocab"]) -> None:
        """Chooses by the scores of the next token."""

    def end(self, rows: Sequence[int]) -> None:
        """Ends the sequences of these rows."""

    def told(self) -> Written:
        """What there is so far."""


class Greedy:
    """The likeliest tokens, which cost less than it takes to ask a device."""

    def __init__(self, asked: Request):
        batch = len(asked.prompts)
        self._tokens = np.zeros((batch, asked.options.max_new_tokens), np.int32)
        self._ends, self.written = np.array(asked.ends, np.int32), 0
        self.last, self.done = np.zeros(batch, np.int32), np.zeros(batch, bool)

    def add(self, scores: Float[np.ndarray, "batch vocab"]) -> None:
        self.last = np.where(self.done, self.last, scores.argmax(-1).astype(np.int32))
        self._tokens[:, self.written] = self.last
        self.done = self.done | (self.last[:, None] == self._ends).any(-1)
        self.written += 1

    def end(self, rows: Sequence[int]) -> None:
        self.done[list(rows)] = True

    def told(self) -> Written:
        return Written(self._tokens, np.full(len(self._tokens), self.written), None)


class Drawn:
    """Tokens as JAX's own writer chooses them: draws, filters, penalty and log-probs."""

    def __init__(self, asked: Request, vocab_size: int, positions: int):
        batch, self.written = len(asked.prompts), 0
        seen = np.zeros((batch, vocab_size), bool)
        for row, prompt in zip(seen, asked.prompts, strict=True):
            row[prompt] = True
        with on_cpu():
            self._settings = asked.settings()
            self._state = _begin(seen, room=asked.room(positions), alternatives=asked.options.log_probs)
        self.last, self.done = np.zeros(batch, np.int32), np.zeros(batch, bool)

    def add(self, scores: Float[np.ndarray, "batch vocab"]) -> None:
        with on_cpu():
            self._state, last = _with_one_more(self._state, scores, self._settings)
        self.last, self.done = to_host((last, self._state.done))
        self.written += 1

    def end(self, rows: Sequence[int]) -> None:
        with on_cpu():
            self._state = self._state._replace(done=ended(self._state.done, rows))
        self.done = to_host(self._state.done)

    def told(self) -> Written:
        tokens, told = to_host((self._state.tokens, self._state.log_probs))
        return Written(tokens, np.full(len(tokens), self.written), told)


def choice_for(asked: Request, vocab_size: int, positions: int) -> Choice:
    """How the tokens of a request are chosen."""
    options = asked.options
    if options.temperature == 0 and options.repetition_penalty == 1 and options.log_probs is None:
        return Greedy(asked)
    return Drawn(asked, vocab_size, positions)


def on_cpu() -> Any:
    """Where JAX chooses: the scores are there, whatever devices it has besides."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


@partial(jax.jit, static_argnames=("room", "alternatives"))
def _begin(seen: Bool[Array, "batch vocab"], *, room: int, alternatives: int | None) -> State:
    """A generation before its first token, whose keys and values are elsewhere."""
    batch = len(seen)
    return State(
        cache=(),
        padding=jnp.zeros(batch, jnp.int32),
        step=jnp.int32(0),
        tokens=jnp.zeros((batch, room), jnp.int32),
        done=jnp.zeros(batch, bool),
        seen=seen,
        log_probs=log_probs.empty(batch, room, alternatives),
    )


@partial(jax.jit, donate_argnames="state")
def _with_one_more(
    state: State, scores: Float[Array, "batch vocab"], settings: Settings
) -> tuple[State, Int[Array, " batch"]]:
    """The state with one more token of each sequence, and those tokens."""
    state = add_token(state, scores, settings)
    return state, jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)[:, 0]
