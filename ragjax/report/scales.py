"""Where a value lies on an axis, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def fraction(self, value: float) -> float:
        """Position of `value`: 0 at `low`, 1 at `high`.

        Example:
          >>> Scale(10, 20).fraction(12.5), Scale(1, 100, log=True).fraction(10)
          (0.25, 0.5)
        """
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values between `low` and `high`.

        Example:
          >>> Scale(0, 10).ticks(), Scale(10, 100, log=True).ticks()
          ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [10.0, 20.0, 50.0, 100.0])
        """
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            inside = [t for t in found if self.low * (1 - 1e-9) <= t <= self.high * (1 + 1e-9)]
            return inside[:: max(1, len(inside) // count)]
        step = _round_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        digits = max(0, 2 - math.floor(math.log10(step)))
        return [round(n * step, digits) for n in range(first, last + 1)]


def scale_of(values: Iterable[float], *, from_zero: bool = False, log_beyond: float = math.inf) -> Scale:
    """An axis with round ends that holds all `values`.

    Args:
      values: finite numbers; at least one.
      from_zero: begin at 0, so that lengths can be compared.
      log_beyond: use a logarithmic axis where the largest value is more than so many times the
        smallest, and all are positive.
    """
    values = list(values)
    low, high = min(values), max(values)
    if low > 0 and not from_zero and high / low > log_beyond:
        return Scale(low / 1.25, high * 1.25, log=True)
    low = min(low, 0.0) if from_zero else low
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = _round_step((high - low) / 5)
    return Scale(
        min(0.0, low) if from_zero else math.floor(low / step + 1e-9) * step,
        math.ceil(high / step - 1e-9) * step,
    )


def _round_step(rough: float) -> float:
    """The round number (1, 2, 2.5, 5 times a power of ten) at or above `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as possible (least squares) to lie at least `gap` apart, in their order.

    Less the gaps before them the places must not fall: isotonic regression, by pooling neighbours
    that violate it. Clipping to [low, high] keeps the optimum; what does not fit runs over `low`.

    Example:
      >>> spread([10, 12, 80], gap=10, low=0, high=100)
      [6.0, 16.0, 80.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        total, count = positions[i] - rank * gap, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    places = [total / count for total, count in pools for _ in range(count)]
    moved = [0.0] * len(positions)
    for rank, i in enumerate(order):
        moved[i] = min(max(places[rank], low), high - (len(order) - 1) * gap) + rank * gap
    return moved
