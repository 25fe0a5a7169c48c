"""In how large equal parts an axis can be worked on."""

from __future__ import annotations


def largest_divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`; 1 where `most` is less.

    Args:
      count: entries of the axis, at least 1.
      most: how many may be in a part.
    """
    return max(size for size in range(1, max(1, min(count, most)) + 1) if count % size == 0)
