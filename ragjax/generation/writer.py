"""A model that writes on the device, as far as it is asked to at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ragjax.generation.decoding import Settings, State, decode, prefill
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.network import Network, laid_out
from ragjax.generation.request import Request
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.hosts import to_host


class Written(NamedTuple):
    """What there is so far, on the host."""

    tokens: Int[np.ndarray, "batch new"]
    counts: Int[np.ndarray, " batch"]
    """Tokens of each sequence that are valid."""
    log_probs: LogProbs | None


class Writer(Protocol):
    """Writes on from the prompts of a request."""

    def write(self, count: int, ahead: int = 0) -> Written:
        """Goes on until every sequence has `count` new tokens or has ended.

        Args:
          count: new tokens; there may be more, if more were written already.
          ahead: how many more may be written while the host looks at these.
        """

    def end(self, rows: Sequence[int]) -> None:
        """Ends the sequences of these prompts."""


class ModelWriter:
    """A model alone: one token after another, all sequences in step."""

    def __init__(self, model: Model, asked: Request):
        config, options = model.config, asked.options
        self._asked, self._settings, self._config = asked, asked.settings(), config
        with asked.on_mesh():
            network = laid_out(asked.placed(model.params), config=config, mesh=asked.mesh)
            self._network = network.for_steps
            self._state: State = prefill(
                network.params, *asked.aligned(config.positions), self._settings, config=config,
                room=asked.room(config.positions), cache_dtype=jnp.dtype(options.cache_dtype),
                alternatives=options.log_probs,
            )  # fmt: skip
        self._begun = 0
        self._latest: _Told | None = None
        self.end(range(len(asked.prompts), len(asked.prompts) + asked.fillers))

    def write(self, count: int, ahead: int = 0) -> Written:
        if self._begun < count:
            self._begin(count)
        latest, further = self._latest, min(self._begun + ahead, self._asked.options.max_new_tokens)
        if further > self._begun:
            self._begin(further)
        rows = len(self._asked.prompts)
        tokens, step, log_probs = to_host(latest)
        log_probs = jax.tree.map(lambda x: x[:rows], log_probs)
        return Written(tokens[:rows], np.full(rows, int(step)), log_probs)

    def end(self, rows: Sequence[int]) -> None:
        self._state = self._state._replace(done=ended(self._state.done, rows))

    def _begin(self, count: int) -> None:
        """Has the device go on until there are `count` new tokens, and does not wait for them."""
        with self._asked.on_mesh():
            self._state, self._latest = _go_on(
                self._network, self._state, np.int32(count), self._settings, config=self._config
            )
        self._begun = count


class _Told(NamedTuple):
    """What the host wants to see of a state, which itself is consumed by the next step."""

    tokens: Int[jax.Array, "batch room"]
    step: Int[jax.Array, ""]
    log_probs: LogProbs | None


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def _go_on(
    network: Network,
    state: State,
    until: Int[jax.Array, ""],
    settings: Settings,
    *,
    config: DecoderConfig,
) -> tuple[State, _Told]:
    state = decode(*network, state, until, settings, config=config)
    return state, _Told(state.tokens, state.step, state.log_probs)


def ended(done: jax.Array, rows: Sequence[int]) -> jax.Array:
    """`done` with True at `rows`."""
    if not rows:
        return done
    marked = to_host(done).copy()
    marked[list(rows)] = True
    return jax.device_put(marked, done.sharding)


def log_prob_rows(
    told: LogProbs | None, row: int, count: int
) -> tuple[Float[np.ndarray, " new"] | None, list[dict[int, float]] | None]:
    """Log-probs of the first `count` tokens of a sequence, and of the likeliest tokens in their places."""
    if told is None:
        return None, None
    pairs = zip(np.asarray(told.tokens[row, :count]), np.asarray(told.values[row, :count]), strict=True)
    alternatives = [dict(zip(ids.tolist(), values.tolist(), strict=True)) for ids, values in pairs]
    return np.asarray(told.chosen[row, :count]), alternatives
