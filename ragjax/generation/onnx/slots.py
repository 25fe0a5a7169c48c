"""Slots of a model that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ragjax.config import Decoding
from ragjax.errors import InputError
from ragjax.generation import log_probs
from ragjax.generation.decoding import Settings
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.onnx.choice import on_cpu
from ragjax.generation.onnx.network import Network
from ragjax.generation.seats import ENDS, MOST_TOKENS, Seats, advanced, seats_alone, settings_for, stand_up
from ragjax.generation.slots import MOST_ALTERNATIVES, Stepped
from ragjax.onnx_model import OnnxModel
from ragjax.parallel.hosts import to_host

_seats_alone = jax.jit(seats_alone, static_argnums=(0, 1, 2))


class OnnxSlots:
    """A batch of sequences in onnxruntime that join and leave while it runs; see
    `ragjax.generation.slots.Slots`.

    A prompt is read straight into the row of its slot, while the others wait; a step computes all slots,
    and attends to as many keys as each has.
    """

    def __init__(self, model: OnnxModel, *, count: int = 4, room: int | None = None):
        """Makes free slots.

        Args:
          model: an open model.
          count: slots.
          room: tokens a slot holds; none: as many as the model has positions.

        Raises:
          InputError: more room than the model has positions.
        """
        config = model.config
        self.count, self.room = count, room or config.positions
        if self.room > config.positions:
            raise InputError(
                f"A slot cannot hold {self.room} tokens: the model has {config.positions} positions. "
                "Ask for less."
            )
        self._model, self._network = model, Network(model, batch=count, room=self.room)
        self._alternatives = min(MOST_ALTERNATIVES, config.vocab_size)
        self._telling: set[int] = set()
        self._fresh = np.zeros(count, bool)
        self._first = np.zeros((count, config.vocab_size), np.float32)
        """Scores of the first new token of those that are fresh."""
        with on_cpu():
            self._seats = _seats_alone(count, ENDS, config.vocab_size)

    def warm(self) -> None:
        """Compiles the programs that choose tokens by running each of them once."""
        for told in (None, 0):
            self.join(0, [0], Decoding(max_new_tokens=2, stop_at_eos=False, log_probs=told))
            self.step()
            self.step()
            self.leave(0)

    def join(self, slot: int, prompt: Sequence[int], options: Decoding, row: int = 0) -> None:
        """Reads a prompt into a free slot; its first token comes with the next step."""
        self._first[slot] = self._network.read_row(slot, prompt)
        self._fresh[slot] = True
        if options.log_probs is not None:
            self._telling.add(slot)
        seen = np.zeros(self._first.shape[1], bool)
        seen[list(prompt)] = True
        with on_cpu():
            self._seats = _seated(
                self._seats, np.int32(slot), np.int32(len(prompt)), np.int32(options.max_new_tokens), seen,
                settings_for(self._model, options, row),
            )  # fmt: skip

    def step(self, most: int = 1) -> Stepped:
        """Hands out the first tokens of those that came since the last step, else writes on in all slots."""
        if self._fresh.any():
            live, self._fresh = self._fresh, np.zeros(self.count, bool)
            return self._chosen(self._first, live)
        parts = []
        for _ in range(min(most, MOST_TOKENS)):
            last, place, left = to_host((self._seats.last, self._seats.place, self._seats.left))
            if not (left > 0).any():
                break
            parts.append(self._chosen(self._network.feed(last, place + 1), left > 0))
        if not parts:
            return Stepped(np.full((self.count, 1), -1, np.int32), None)
        tokens = np.concatenate([part.tokens for part in parts], 1)
        told = [part.log_probs for part in parts if part.log_probs is not None]
        if not told:
            return Stepped(tokens, None)
        return Stepped(tokens, jax.tree.map(lambda *each: np.concatenate(each, 1), *told))

    def leave(self, slot: int) -> None:
        """Frees a slot, whether it has ended or not."""
        self._fresh[slot] = False
        self._telling.discard(slot)
        with on_cpu():
            left = stand_up(self._seats.left, np.int32(slot))
            self._seats = self._seats._replace(left=left)

    def _chosen(self, scores: np.ndarray, live: np.ndarray) -> Stepped:
        """One more token of each live slot."""
        with on_cpu():
            self._seats, tokens, told = _with_one_more(
                self._seats, scores, live, alternatives=self._alternatives if self._telling else None
            )
        return Stepped(*to_host((tokens, told)))


@partial(jax.jit, donate_argnames="seats")
def _seated(
    seats: Seats,
    slot: Int[Array, ""],
    length: Int[Array, ""],
    limit: Int[Array, ""],
    seen: Bool[Array, " vocab"],
    settings: Settings,
) -> Seats:
    """The seats with a sequence whose prompt has been read, and whose first new token is to be chosen.

    Args:
      seats: consumed.
      slot: whose seat.
      length: tokens of the prompt.
      limit: new tokens at most.
      seen: tokens that the prompt holds.
      settings: of one sequence, with a first axis of 1.
    """
    return Seats(
        (),
        # The last token moves on by one with every token that is chosen, the first among them.
        seats.place.at[slot].set(length - 1),
        seats.last,
        seats.written.at[slot].set(0),
        seats.left.at[slot].set(limit),
        seats.seen.at[slot].set(seen),
        jax.tree.map(lambda held, own: held.at[slot].set(own[0]), seats.settings, settings),
    )


@partial(jax.jit, static_argnames="alternatives", donate_argnames="seats")
def _with_one_more(
    seats: Seats,
    scores: Float[Array, "slots vocab"],
    live: Bool[Array, " slots"],
    *,
    alternatives: int | None,
) -> tuple[Seats, Int[Array, "slots 1"], LogProbs | None]:
    """The seats with one more token of each live sequence, those tokens (-1: none), and their log-probs."""
    seats, token = advanced(seats, scores, live)
    record = log_probs.empty(len(token), 1, alternatives)
    told = log_probs.noted(record, scores[:, None], token[:, None], jnp.int32(0))
    return seats, jnp.where(live, token, -1)[:, None], told
