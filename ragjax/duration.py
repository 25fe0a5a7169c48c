"""Time spans as a person says them."""

from __future__ import annotations


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
