"""Where the sequences of a batch sit: at a model's own table, or at that of a model and its draft."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ragjax.config import Decoding
from ragjax.generation import drafted_seats, seats
from ragjax.generation.decoding import Settings
from ragjax.generation.draft_length import round_costs
from ragjax.generation.drafted import draft_lengths
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.network import Network, laid_out
from ragjax.generation.prompts import Prompts
from ragjax.generation.seats import ENDS, MOST_TOKENS
from ragjax.generation.slots import Drafts
from ragjax.generation.speculative import Configs, Pace
from ragjax.model import Model
from ragjax.parallel.rules import place

_TRIALS = 3
"""Times that rounds are timed without a draft, and with the longest."""
_SHORT = 0.02
"""Seconds of a round that is timed together with others."""


@dataclass(frozen=True)
class Size:
    """Of a table."""

    count: int
    """Seats."""
    room: int
    """Tokens each holds."""
    dtype: jnp.dtype
    """Type in which keys and values are kept."""


class Fresh(NamedTuple):
    """What a step wrote, on the device."""

    tokens: Int[Array, "slots new"]
    log_probs: LogProbs | None
    drafts: Drafts | None


class Table(Protocol):
    """Seats on the device, and the programs that serve them."""

    def sit(
        self, slot: int, prompt: Prompts, limit: int, settings: Settings, told: int | None
    ) -> tuple[Int[Array, " 1"], LogProbs | None]:
        """Reads a prompt into a seat: the first token, and its log-probs and so many likeliest."""

    def write(self, most: int, told: int | None, *, drawn: bool) -> Fresh:
        """Goes on in all seats.

        Args:
          most: tokens of each at most, but for what a draft adds.
          told: tell log-probs, and of so many likeliest; none: tell none.
          drawn: whether one of the sequences is drawn.
        """

    def stand(self, slot: int) -> None:
        """Frees a seat."""

    def measure(self, sit: Callable[[bool], None]) -> None:
        """Times what there is to choose between; all programs are compiled.

        Args:
          sit: seats a text, drawn or not, that is not at its end.
        """


class Alone:
    """A model writes by itself."""

    def __init__(self, model: Model, size: Size, mesh: jax.sharding.Mesh | None):
        self._config = model.config
        self._network = _network(model, mesh)
        self._seats = seats.empty_seats(config=model.config, ends=ENDS, **vars(size))

    def sit(
        self, slot: int, prompt: Prompts, limit: int, settings: Settings, told: int | None
    ) -> tuple[Int[Array, " 1"], LogProbs | None]:
        self._seats, scores = seats.sit_down(
            self._network.params, self._seats, np.int32(slot), *prompt, config=self._config
        )
        self._seats, *first = seats.begin(
            self._seats, np.int32(slot), scores, np.int32(limit), settings, alternatives=told
        )
        return tuple(first)

    def write(self, most: int, told: int | None, *, drawn: bool) -> Fresh:
        self._seats, tokens, record = seats.write_on(
            *self._network.for_steps, self._seats, np.int32(most), config=self._config, alternatives=told
        )
        return Fresh(tokens, record, None)

    def stand(self, slot: int) -> None:
        self._seats = self._seats._replace(left=seats.stand_up(self._seats.left, np.int32(slot)))

    def measure(self, sit: Callable[[bool], None]) -> None:
        pass


class Drafted:
    """A model writes with the help of a draft, whose lengths go by what rounds took when they were timed, and
    by how often the drafts of all sequences are kept."""

    def __init__(
        self, model: Model, draft: Model, size: Size, mesh: jax.sharding.Mesh | None, *, draft_tokens: int
    ):
        self._configs = Configs(model.config, draft.config)
        self._menu = draft_lengths(Decoding(draft_tokens=draft_tokens))
        self._networks = _network(model, mesh), _network(draft, mesh)
        self._seats = drafted_seats.empty_seats(
            configs=self._configs, ends=ENDS, menu=self._menu, **vars(size)
        )
        self._costs = dict.fromkeys((False, True), round_costs(self._menu, 1.0, 2.0))

    def sit(
        self, slot: int, prompt: Prompts, limit: int, settings: Settings, told: int | None
    ) -> tuple[Int[Array, " 1"], LogProbs | None]:
        params = (network.params for network in self._networks)
        self._seats, scores = drafted_seats.sit_down(
            *params, self._seats, np.int32(slot), *prompt, configs=self._configs
        )
        self._seats, *first = drafted_seats.begin(
            self._seats, np.int32(slot), scores, np.int32(limit), settings, alternatives=told
        )
        return tuple(first)

    def write(self, most: int, told: int | None, *, drawn: bool) -> Fresh:
        return self._written(most, told, drawn=drawn, fixed=-1)

    def stand(self, slot: int) -> None:
        state = self._seats.state
        self._seats = self._seats._replace(
            state=state._replace(done=drafted_seats.stand_up(state.done, np.int32(slot)))
        )

    def measure(self, sit: Callable[[bool], None]) -> None:
        choices, most = (0, len(self._menu) - 1), 1
        for drawn in self._costs:
            seconds: dict[int, list[float]] = {choice: [] for choice in choices}
            for choice in choices * _TRIALS:
                sit(drawn)
                seconds[choice].append(self._seconds_a_round(most, drawn=drawn, fixed=choice))
                # Of a small model so many that what it costs to ask is spread thin.
                most = MOST_TOKENS if min(map(min, filter(None, seconds.values()))) < _SHORT else 1
            self._costs[drawn] = round_costs(self._menu, *map(median, seconds.values()))

    def _seconds_a_round(self, most: int, *, drawn: bool, fixed: int) -> float:
        jax.block_until_ready(self._seats)
        begun = time.perf_counter()
        fresh = jax.block_until_ready(self._written(most, None, drawn=drawn, fixed=fixed))
        return (time.perf_counter() - begun) / max(1, int(fresh.drafts.passes.max()))

    def _written(self, most: int, told: int | None, *, drawn: bool, fixed: int) -> Fresh:
        pace = Pace(self._costs[drawn], np.asarray(fixed, np.int32))
        self._seats, *fresh = drafted_seats.write_on(
            *(network.for_steps for network in self._networks), self._seats, np.int32(most), pace,
            configs=self._configs, menu=self._menu, alternatives=told,
        )  # fmt: skip
        return Fresh(*fresh)


def _network(model: Model, mesh: jax.sharding.Mesh | None) -> Network:
    params = model.params if mesh is None else place(model.params, mesh)
    return laid_out(params, config=model.config, mesh=mesh)
