"""Slots of a model that JAX runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ragjax.config import CacheDtype, Decoding
from ragjax.errors import InputError, listing
from ragjax.generation import log_probs
from ragjax.generation.drafted import draft_problems
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.prompts import align, bucket
from ragjax.generation.seats import MOST_TOKENS, settings_for
from ragjax.generation.slots import MOST_ALTERNATIVES, Stepped
from ragjax.generation.tables import Alone, Drafted, Size, Table
from ragjax.model import Model
from ragjax.parallel.hosts import to_host
from ragjax.parallel.rules import check_divisible


class ModelSlots:
    """A batch of a model's sequences that join and leave while it runs; see `ragjax.generation.slots.Slots`.

    Lengths of prompts are rounded up to powers of two, and options are arrays, so that after `warm` no
    request compiles anything. A step computes all slots and reads as many keys as they have room for,
    taken or not: its time grows with `count * room`. (The kernels for CPU read those that are there.)
    """

    def __init__(
        self,
        model: Model,
        *,
        draft: Model | None = None,
        draft_tokens: int = 4,
        count: int = 4,
        room: int | None = None,
        cache_dtype: CacheDtype = "float32",
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Makes free slots.

        Args:
          model: a model.
          draft: a faster one of the same vocabulary, which proposes tokens that `model` then reads at once;
            none: the model alone.
          draft_tokens: tokens it proposes at once, at most.
          count: slots.
          room: tokens a slot holds; none: as many as the model has positions.
          cache_dtype: type in which keys and values are kept.
          mesh: devices over which parameters, slots and heads are split; none: one device.

        Raises:
          InputError: more room than the model has positions, a draft that cannot speak for the model, or
            models that do not fit the mesh.
        """
        config = model.config
        self.count, self.room = count, room or config.positions
        if self.room > config.positions:
            raise InputError(
                f"A slot cannot hold {room} tokens: the model has {config.positions} positions. Ask for less."
            )
        problems = [] if draft is None else draft_problems(model, draft, self.room)
        if problems:
            raise InputError(f"This draft cannot be used:\n{listing(problems)}")
        if mesh is not None:
            for each in (model, draft):
                if each is not None:
                    check_divisible(each.config, mesh, batch_size=count)
        self._model, self._mesh = model, mesh
        self._alternatives = min(MOST_ALTERNATIVES, config.vocab_size)
        self._fresh: dict[int, tuple[jax.Array, LogProbs | None]] = {}
        self._telling: set[int] = set()
        self._drawn: set[int] = set()
        size = Size(count, self.room, jnp.dtype(cache_dtype))
        with self._on_mesh():
            self._table: Table = (
                Alone(model, size, mesh)
                if draft is None
                else Drafted(model, draft, size, mesh, draft_tokens=draft_tokens)
            )

    def warm(self) -> None:
        """Compiles all programs by running each of them once, and times rounds with a draft."""
        for length in self._lengths():
            limit = min(2, self.room - length)
            for told in (None, 0):
                self.join(0, [0] * length, Decoding(max_new_tokens=limit, stop_at_eos=False, log_probs=told))
                self.step()
                self.step()
                self.leave(0)

        def sit(drawn: bool) -> None:
            options = Decoding(max_new_tokens=self.room - 1, stop_at_eos=False, temperature=float(drawn))
            self.join(0, [0], options)

        with self._on_mesh():
            self._table.measure(sit)
        self.leave(0)

    def join(self, slot: int, prompt: Sequence[int], options: Decoding, row: int = 0) -> None:
        """Reads a prompt into a free slot; its first token comes with the next step."""
        aligned = align([prompt], positions=self.room)
        settings = settings_for(self._model, options, row)
        if options.log_probs is not None:
            self._telling.add(slot)
        if options.temperature:
            self._drawn.add(slot)
        told = None if options.log_probs is None else self._alternatives
        with self._on_mesh():
            self._fresh[slot] = self._table.sit(slot, aligned, options.max_new_tokens, settings, told)

    def step(self, most: int = 1) -> Stepped:
        """Hands out the first tokens of those that came since the last step, else writes on in all slots."""
        if self._fresh:
            return self._first_tokens()
        told = self._alternatives if self._telling else None
        with self._on_mesh():
            fresh = self._table.write(min(most, MOST_TOKENS), told, drawn=bool(self._drawn))
        return Stepped(*to_host(fresh))

    def leave(self, slot: int) -> None:
        """Frees a slot, whether it has ended or not."""
        self._fresh.pop(slot, None)
        self._telling.discard(slot)
        self._drawn.discard(slot)
        with self._on_mesh():
            self._table.stand(slot)

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
