"""Numbers as a person reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ragjax.duration import duration as plain_duration

NONE = "–"
"""Stands where a figure is missing or not finite."""
SPACE = "\u00a0"
"""Between a number and its unit: never broken over two lines."""


def grouped(value: float | None) -> str:
    """A count in full: 1,234,567."""
    return NONE if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """A figure with the digits that matter: 5.23, 31.20, 102.4, 1,240."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.{2 if size < 100 else 1 if size < 1000 else 0}f}"


def precise(value: float | None) -> str:
    """A figure with three decimals."""
    return NONE if value is None else f"{value:.3f}"


def compact(value: float | None) -> str:
    """A count in three digits and its thousands: 950, 12.3 k, 5.33 M.

    Example:
      >>> compact(5_328_896).replace(SPACE, " ")
      '5.33 M'
    """
    if value is None:
        return NONE
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)}{SPACE}{unit}"
    return _three_digits(value) if value != int(value) else f"{value:.0f}"


def in_bytes(value: float | None) -> str:
    """A size in decimal units: 21.3 MB."""
    if value is None:
        return NONE
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)}{SPACE}{unit}"
    return f"{value:.0f}{SPACE}bytes"


def percent(share: float | None) -> str:
    """A share of one: 52 %, 4.7 %, 0.3 %."""
    if share is None:
        return NONE
    value = 100 * share
    rounded = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}"
    # What is not everything must not read as everything.
    if rounded == "100" and value != 100:
        rounded = f"{value:.2f}"
    return f"{rounded.removesuffix('.0')}{SPACE}%"


def signed_percent(share: float | None) -> str:
    """A relative change with its sign: +4.7 %, −48 %, ±0 %."""
    if share is None:
        return NONE
    size = percent(abs(share))
    if size == percent(0.0):
        return f"±{size}"
    return f"{'+' if share > 0 else '−'}{size}"


def times(ratio: float | None) -> str:
    """A ratio: 0.87, 1.07, 1.8, 12."""
    if ratio is None:
        return NONE
    return f"{ratio:.{2 if ratio < 1.5 else 1 if ratio < 10 else 0}f}"


def trimmed(text: str) -> str:
    """`text` without the zeros that end a decimal fraction.

    Example:
      >>> trimmed("2.50 k"), trimmed("6.000"), trimmed("200")
      ('2.5 k', '6', '200')
    """
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda found: found[1].rstrip("."), text)


def duration(seconds: float | None) -> str:
    """A time span: 0.8 s, 42 s, 3 min 20 s, 5 h 12 min."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    return plain_duration(seconds, space=SPACE)


def change(new: float | None, old: float | None) -> float | None:
    """new / old - 1, where both are known and old is not 0."""
    return new / old - 1 if new is not None and old else None


def listed(parts: Sequence[str]) -> str:
    """One sentence part of several: a and b; a, b, and c."""
    if len(parts) < 3:
        return " and ".join(parts)
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _three_digits(value: float) -> str:
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(2, max(0, digits))}f}"
