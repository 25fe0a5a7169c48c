"""Slots of a model that JAX runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ragjax.config import CacheDtype, Decoding
from ragjax.errors import InputError
from ragjax.generation import log_probs
from ragjax.generation.decoding import unstack
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.prompts import align, bucket
from ragjax.generation.seats import (
    ENDS,
    MOST_TOKENS,
    begin,
    empty_seats,
    settings_for,
    sit_down,
    stand_up,
    write_on,
)
from ragjax.generation.slots import MOST_ALTERNATIVES, Stepped
from ragjax.model import Model
from ragjax.parallel.hosts import to_host
from ragjax.parallel.rules import check_divisible, place


class ModelSlots:
    """A batch of a model's sequences that join and leave while it runs; see `ragjax.generation.slots.Slots`.

    Lengths of prompts are rounded up to powers of two, and options are arrays, so that after `warm` no
    request compiles anything. A step computes all slots and reads as many keys as they have room for,
    taken or not: its time grows with `count * room`.
    """

    def __init__(
        self,
        model: Model,
        *,
        count: int = 4,
        room: int | None = None,
        cache_dtype: CacheDtype = "float32",
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Makes free slots.

        Args:
          model: a model.
          count: slots.
          room: tokens a slot holds; none: as many as the model has positions.
          cache_dtype: type in which keys and values are kept.
          mesh: devices over which parameters, slots and heads are split; none: one device.

        Raises:
          InputError: more room than the model has positions, or a model that does not fit the mesh.
        """
        config = model.config
        self.count, self.room = count, room or config.positions
        if self.room > config.positions:
            raise InputError(
                f"A slot cannot hold {room} tokens: the model has {config.positions} positions. Ask for less."
            )
        if mesh is not None:
            check_divisible(config, mesh, batch_size=count)
        self._model, self._mesh = model, mesh
        self._alternatives = min(MOST_ALTERNATIVES, config.vocab_size)
        self._fresh: dict[int, tuple[jax.Array, LogProbs | None]] = {}
        self._telling: set[int] = set()
        with self._on_mesh():
            self._params = model.params if mesh is None else place(model.params, mesh)
            self._layers = unstack(self._params, config=config)
            self._seats = empty_seats(
                config=config, count=count, room=self.room, ends=ENDS, dtype=jnp.dtype(cache_dtype)
            )

    def warm(self) -> None:
        """Compiles all programs by running each of them once."""
        for length in self._lengths():
            limit = min(2, self.room - length)
            for told in (None, 0):
                self.join(0, [0] * length, Decoding(max_new_tokens=limit, stop_at_eos=False, log_probs=told))
                self.step()
                self.step()
                self.leave(0)

    def join(self, slot: int, prompt: Sequence[int], options: Decoding, row: int = 0) -> None:
        """Reads a prompt into a free slot; its first token comes with the next step."""
        tokens, padding = align([prompt], positions=self.room)
        settings = settings_for(self._model, options, row)
        if options.log_probs is not None:
            self._telling.add(slot)
        with self._on_mesh():
            where = jnp.int32(slot)
            self._seats, scores = sit_down(
                self._params, self._seats, where, tokens, padding, config=self._model.config
            )
            self._seats, token, told = begin(
                self._seats, where, scores, jnp.int32(options.max_new_tokens), settings,
                alternatives=None if options.log_probs is None else self._alternatives,
            )  # fmt: skip
        self._fresh[slot] = token, told

    def step(self, most: int = 1) -> Stepped:
        """Hands out the first tokens of those that came since the last step, else writes on in all slots."""
        if self._fresh:
            return self._first_tokens()
        with self._on_mesh():
            self._seats, tokens, told = write_on(
                self._params, self._layers, self._seats, jnp.int32(min(most, MOST_TOKENS)),
                config=self._model.config, alternatives=self._alternatives if self._telling else None,
            )  # fmt: skip
        return Stepped(*to_host((tokens, told)))

    def leave(self, slot: int) -> None:
        """Frees a slot, whether it has ended or not."""
        self._fresh.pop(slot, None)
        self._telling.discard(slot)
        with self._on_mesh():
            self._seats = self._seats._replace(left=stand_up(self._seats.left, jnp.int32(slot)))

    def _first_tokens(self) -> Stepped:
        tokens = np.full((self.count, 1), -1, np.int32)
        told = None
        if any(record is not None for _, record in self._fresh.values()):
            told = to_host(log_probs.empty(self.count, 1, self._alternatives))
            told = jax.tree.map(np.copy, told)
        for slot, (token, record) in self._fresh.items():
            tokens[slot] = to_host(token)
            if told is not None and record is not None:
                for whole, part in zip(told, to_host(record), strict=True):
                    whole[slot] = part[0]
        self._fresh.clear()
        return Stepped(tokens, told)

    def _lengths(self) -> Iterator[int]:
        """A length of each kind that a prompt may be rounded up to; a slot must have room for one more."""
        rounded = {bucket(size, most=self.room) for size in range(1, self.room)}
        yield from (min(size, self.room - 1) for size in sorted(rounded))

    def _on_mesh(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
