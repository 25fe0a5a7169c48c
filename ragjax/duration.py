"""Time spans as a person says them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean


def duration(seconds: float, *, space: str = " ") -> str:
    """A time span to the second, from an hour on to the minute.

    Args:
      seconds: how long.
      space: stands between a number and its unit.

    Example:
      >>> duration(8), duration(192), duration(7500)
      ('8 s', '3 min 12 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{space}s"
    if whole < 3600:
        return f"{whole // 60}{space}min {whole % 60}{space}s"
    return f"{whole // 3600}{space}h {whole % 3600 // 60}{space}min"


def time_left(taken: Sequence[float], parts: int) -> str:
    """How long the rest of a work takes, from the parts of it that are done.

    The first of them also waits for its programs to be compiled, and counts only as long as it is alone.

    Args:
      taken: seconds of each part that is done; one at least.
      parts: how many are left.

    Example:
      >>> time_left([30.0], 3), time_left([30.0, 5.0, 7.0], 1)
      ('up to 1 min 30 s left', 'about 6 s left')
    """
    return f"{'about' if taken[1:] else 'up to'} {duration(mean(taken[1:] or taken) * parts)} left"
