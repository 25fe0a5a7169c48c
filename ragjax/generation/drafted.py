"""A model that writes with the help of a draft: its tokens, in less time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from ragjax.config import Decoding
from ragjax.errors import InputError, listing
from ragjax.generation.draft_length import round_costs
from ragjax.generation.network import laid_out
from ragjax.generation.request import Request
from ragjax.generation.speculative import Configs, Drafting, Pace, begin, speculate
from ragjax.generation.writer import Written, ended
from ragjax.model import Model
from ragjax.parallel.hosts import to_host
from ragjax.parallel.rules import check_divisible

_TRIALS = 3
"""Rounds that are timed without a draft, and with the longest."""
_ALL = np.iinfo(np.int32).max // 2


@dataclass(frozen=True)
class Speculation:
    """How a draft did, over all prompts of a call."""

    rounds: int
    """Passes of the model over a draft."""
    drafted: int
    """Tokens that were drafted."""
    accepted: int
    """Those of them that the model kept."""
    seconds: float
    """Time of all rounds."""
    seconds_alone: float | None
    """Time of the model alone, from rounds without a draft; none where the text was too short."""

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that the model kept."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def speed_up(self) -> float | None:
        """How many times as fast as the model alone."""
        return self.seconds_alone / self.seconds if self.seconds_alone and self.seconds else None


def check_draft(model: Model, draft: Model, asked: Request) -> None:
    """Refuses a draft that cannot speak for the model.

    Raises:
      InputError: names all that does not fit.
    """
    options = asked.options
    problems = draft_problems(model, draft, max(map(len, asked.prompts)) + options.max_new_tokens)
    if options.beams > 1:
        problems.append("beams are not drafted: set beams to 1")
    if problems:
        raise InputError(f"This draft cannot be used:\n{listing(problems)}")
    if asked.mesh is not None:
        check_divisible(draft.config, asked.mesh, batch_size=len(asked.prompts) + asked.fillers)


def draft_problems(model: Model, draft: Model, longest: int) -> list[str]:
    """What keeps a draft from speaking for the model in texts of up to `longest` tokens."""
    problems = []
    if model.config.vocab_size != draft.config.vocab_size:
        problems.append(
            f"the model has {model.config.vocab_size} tokens, the draft {draft.config.vocab_size}: "
            "take one of the same vocabulary"
        )
    elif model.tokenizer and draft.tokenizer and model.tokenizer.get_vocab() != draft.tokenizer.get_vocab():
        problems.append("their tokenizers give the same ids to other tokens: take one of the same vocabulary")
    if longest > draft.config.positions:
        problems.append(
            f"the text may have {longest} tokens, the draft has {draft.config.positions} positions"
        )
    return problems


def draft_lengths(options: Decoding) -> tuple[int, ...]:
    """The lengths a draft may have: none, powers of two and the longest, or none and the longest alone."""
    longest = options.draft_tokens
    powers = [2**i for i in range(longest.bit_length()) if options.adapt_draft]
    return tuple(sorted({0, *powers, longest}))


class DraftedWriter:
    """A model and its draft. The first rounds are timed, with the longest draft and without one in turn."""

    def __init__(self, model: Model, draft: Model, asked: Request):
        options, positions = asked.options, model.config.positions
        self._asked, self._settings = asked, asked.settings()
        self._configs, self._menu = Configs(model.config, draft.config), draft_lengths(options)
        with asked.on_mesh():
            params = asked.placed(model.params), asked.placed(draft.params)
            networks = [
                laid_out(each, config=config, mesh=asked.mesh)
                for each, config in zip(params, self._configs, strict=True)
            ]
            self._networks = tuple(network.for_steps for network in networks)
            self._state: Drafting = begin(
                *(network.params for network in networks), *asked.aligned(positions), self._settings,
                configs=self._configs, room=asked.room(positions), menu=self._menu,
                cache_dtype=jnp.dtype(options.cache_dtype), alternatives=options.log_probs,
            )  # fmt: skip
        self.end(range(len(asked.prompts), len(asked.prompts) + asked.fillers))
        longest = len(self._menu) - 1
        self._trials = [longest, 0] * _TRIALS
        self._timed: dict[int, list[float]] = {0: [], longest: []}
        self._seconds, self._compiled = 0.0, False

    def write(self, count: int, ahead: int = 0) -> Written:
        if not self._compiled:
            self._run(count, rounds=0, fixed=0)
            self._compiled, self._seconds = True, 0.0
        while self._trials and not self._reached(count):
            choice = self._trials.pop(0)
            self._timed[choice].append(self._run(count, rounds=1, fixed=choice))
        if not self._reached(count):
            self._run(
                count, rounds=_ALL, fixed=-1 if self._asked.options.adapt_draft else len(self._menu) - 1
            )
        return self._written()

    def end(self, rows: Sequence[int]) -> None:
        self._state = self._state._replace(done=ended(self._state.done, rows))

    @property
    def speculation(self) -> Speculation:
        """How the draft did so far."""
        tally, counts = to_host((self._state.tally, self._state.written))
        alone = self._alone()
        steps = int(counts[: len(self._asked.prompts)].max()) - 1
        return Speculation(
            int(tally.rounds), int(tally.drafted.sum()), int(tally.accepted.sum()), self._seconds,
            None if alone is None else alone * steps,
        )  # fmt: skip

    def _alone(self) -> float | None:
        """Seconds the model takes for a token by itself, by the rounds without a draft."""
        alone, longest = self._timed[0], self._timed[len(self._menu) - 1]
        if not alone:
            return None
        # A draw asks the draft once even so, for what a drafted token adds at most.
        asks = median(longest) - median(alone) if self._asked.options.temperature else 0.0
        return max(median(alone) - max(asks, 0.0) / self._menu[-1], 0.0)

    def _run(self, count: int, *, rounds: int, fixed: int) -> float:
        """Runs the loop once, and returns the seconds it took."""
        pace = Pace(self._costs(), np.asarray(fixed, np.int32))
        begun = time.perf_counter()
        with self._asked.on_mesh():
            self._state = speculate(
                *self._networks, self._state, np.int32(count), np.int32(self._asked.options.max_new_tokens),
                np.int32(rounds), pace, self._settings, configs=self._configs, menu=self._menu,
            )  # fmt: skip
            jax.block_until_ready(self._state.written)
        taken = time.perf_counter() - begun
        self._seconds += taken
        return taken

    def _costs(self) -> jax.Array:
        alone, longest = (self._timed[choice] for choice in (0, len(self._menu) - 1))
        if not (alone and longest):
            return round_costs(self._menu, 1.0, 2.0)
        return round_costs(self._menu, median(alone), median(longest))

    def _reached(self, count: int) -> bool:
        counts, done = to_host((self._state.written, self._state.done))
        return bool((done | (counts >= count)).all())

    def _written(self) -> Written:
        rows = len(self._asked.prompts)
        text, counts, told = to_host((self._state.text, self._state.written, self._state.log_probs))
        return Written(text[:rows, 1:], counts[:rows], jax.tree.map(lambda x: x[:rows], told))
