"""What is asked of a model, checked, and as the device takes it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ragjax.config import Decoding
from ragjax.errors import InputError
from ragjax.generation.decoding import Settings
from ragjax.generation.filters import Filters
from ragjax.generation.prompts import Described, Prompts, align, bucket, complete, end_tokens
from ragjax.generation.sampling import keys_of
from ragjax.models.decoder import Params
from ragjax.parallel.mesh import batch_shards
from ragjax.parallel.rules import check_divisible, place

_FEWEST_ENDS = 8
_keys_of = jax.jit(keys_of)


@dataclass(frozen=True)
class Request:
    """Prompts and how they are continued."""

    prompts: list[list[int]]
    """Token ids, none of them empty."""
    options: Decoding
    ends: tuple[int, ...]
    """Token ids that end a text."""
    mesh: jax.sharding.Mesh | None
    rows: Sequence[int] | None = None
    """Numbers by which the prompts draw; none: their places."""

    def aligned(self, positions: int) -> Prompts:
        """The prompts flush right, after them as many again as make rows for each part of the mesh."""
        return align([*self.prompts, *self.prompts[:1] * self.fillers], positions=positions)

    @property
    def fillers(self) -> int:
        """Rows that only make the batch divisible."""
        return 0 if self.mesh is None else -len(self.prompts) % batch_shards(self.mesh)

    def room(self, positions: int) -> int:
        """New tokens there is room for."""
        return bucket(self.options.max_new_tokens, most=positions)

    def eos(self) -> Int[np.ndarray, " ends"]:
        """`ends`, filled up with ids that match no token, so that any few of them are one program."""
        size = max(_FEWEST_ENDS, 1 << (len(self.ends) - 1).bit_length()) if self.ends else _FEWEST_ENDS
        filled = np.full(size, -1, np.int32)
        filled[: len(self.ends)] = self.ends
        return filled

    def settings(self) -> Settings:
        """How tokens are chosen, for the device."""
        asked = self.options
        reals = asked.temperature, asked.repetition_penalty, asked.top_p, asked.min_p
        # All at once: each by itself would cost a third of a millisecond.
        temperature, penalty, top_p, min_p, top_k, ends = jax.device_put(
            (*map(np.float32, reals), np.int32(asked.top_k), self.eos())
        )
        rows = range(len(self.prompts)) if self.rows is None else self.rows
        numbers = np.array([*rows, *[0] * self.fillers], np.int32)
        keys = _keys_of(jax.random.key(asked.seed), numbers)
        return Settings(temperature, keys, ends, Filters(top_k, top_p, min_p), penalty)

    def on_mesh(self) -> AbstractContextManager[Any]:
        """Where programs know the mesh, if there is one."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def placed(self, params: Params) -> Params:
        """`params` on the mesh, if there is one."""
        return params if self.mesh is None else place(params, self.mesh)


def request(
    model: Described,
    prompts: Sequence[Sequence[int]],
    options: Decoding,
    mesh: jax.sharding.Mesh | None,
) -> Request:
    """What is asked of `model`.

    Raises:
      InputError: prompts or options that do not fit the model, or a model that does not fit the mesh.
    """
    ready = complete(model, prompts, options)
    if options.stop and model.tokenizer is None:
        raise InputError("Stop strings need a model with a tokenizer: give stop_tokens instead.")
    asked = Request(ready, options, ends_of(model, options), mesh)
    if mesh is not None:
        check_divisible(model.config, mesh, batch_size=len(ready) + asked.fillers)
    return asked


def ends_of(model: Described, options: Decoding) -> tuple[int, ...]:
    """Token ids that end a text: the model's own, unless it goes on behind them, and those asked for."""
    own = end_tokens(model) if options.stop_at_eos else ()
    return tuple(dict.fromkeys([*own, *options.stop_tokens]))
