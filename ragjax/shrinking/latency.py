"""Latency of smaller models as a share of the model's own, timed until a budget can be told from it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from math import comb
from statistics import median

import jax
from jax.sharding import Mesh

from ragjax.evaluation.speed import forward_speed
from ragjax.model import Model
from ragjax.models.decoder import Params, init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.rules import place, shardings
from ragjax.sparsity.calibrated.calibration import over
from ragjax.sparsity.shrink import Sizes, sizes_of
from ragjax.sparsity.shrink.search import Cost

_ROUNDS, _MOST_ROUNDS = 5, 25
"""Rounds at a time, and at most: a busy machine or a candidate near the budget takes more of them."""
_DOUBT = 1 / 32
"""Chance that a median lies beyond each of its bounds: that of five rounds that all lie on one side."""


def latency(
    model: Model, budget: float, *, batch: int, length: int, mesh: Mesh | None,
    timed: dict[Sizes, float], progress: Callable[[str, int, int], None],
) -> Cost:  # fmt: skip
    """Seconds of a candidate's forward pass over the model's, timed in turns, and once for each candidate.

    Args:
      model: what candidates are compared with.
      budget: the share of its latency that is asked for.
      batch: sequences at once.
      length: tokens in each.
      mesh: devices that the model is split over; none: one device.
      timed: where each candidate's share is kept.
      progress: told of each candidate.
    """
    if mesh is not None:
        model = replace(model, params=place(model.params, mesh))

    def cost(candidate: DecoderConfig) -> float:
        sizes = sizes_of(candidate)
        if sizes == sizes_of(model.config):
            return 1.0
        if sizes not in timed:
            pair = {"model": model, "candidate": Model(candidate, _random_params(candidate, mesh))}
            timed[sizes] = settled_median(partial(_quotients, pair, batch, length, mesh), budget)
            progress(f"timed {_in_words(sizes)}: {timed[sizes]:.3f} of the latency", len(timed), 0)
        return timed[sizes]

    return cost


def settled_median(measure: Callable[[], Sequence[float]], budget: float) -> float:
    """The median of all that is measured, until it is settled on which side of a number it lies.

    Args:
      measure: measures a few times more.
      budget: the number.

    Returns:
      The median, after `_MOST_ROUNDS` measurements at most.
    """
    found: list[float] = []
    while True:
        found += measure()
        low, high = _bounds(sorted(found))
        if not low <= budget <= high or len(found) >= _MOST_ROUNDS:
            return median(found)


def _bounds(rising: Sequence[float]) -> tuple[float, float]:
    """Two measurements between which the median lies, whatever they are drawn from, as a sign test has it."""
    count = len(rising)
    fewer_below = list(accumulate(comb(count, below) for below in range(count)))
    rank = bisect_right(fewer_below, _DOUBT * 2**count)
    return rising[rank - 1], rising[-rank]


def _quotients(pair: dict[str, Model], batch: int, length: int, mesh: Mesh | None) -> list[float]:
    with over(mesh):
        speeds = forward_speed(pair, batch=batch, length=length, rounds=_ROUNDS)
    rounds = zip(speeds["model"].rounds, speeds["candidate"].rounds, strict=True)
    return [whole / candidate for whole, candidate in rounds]


def _random_params(config: DecoderConfig, mesh: Mesh | None) -> Params:
    """Parameters that lie where a trained model's would."""
    make = partial(init_params, config, 0)
    if mesh is None:
        return make()
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))()


def _in_words(sizes: Sizes) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes._asdict().items())
