"""What long work tells of how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told how many parts of the work are done, and of how many."""


def silent(done: int, of: int) -> None:
    """Tells nobody."""
