"""Lines of how far a long work is, how fast it goes and how long it will take."""

from __future__ import annotations

import time

from rich.console import Console

from ragjax.duration import duration

_EVERY = 10.0
"""Seconds between lines."""


class Pace:
    """Told how far a work is, says so now and then.

    Args:
      console: where to.
      what: what is counted, such as sequences.
      of: how many there are in all.
    """

    def __init__(self, console: Console, what: str, of: int):
        self._console, self._what, self._of = console, what, of
        self._told = time.monotonic()
        self._first: tuple[float, int, int] | None = None

    def __call__(self, done: int, tokens: int) -> None:
        """Told after each batch.

        Args:
          done: how many of them are done.
          tokens: how many tokens that took.
        """
        now = time.monotonic()
        if self._first is None:
            # The first batch was compiled for: the clock starts after it.
            self._first = now, done, tokens
        began, first, before = self._first
        if now - self._told < _EVERY or done == first:
            return
        self._told = now
        speed, left = (tokens - before) / (now - began), (self._of - done) * (now - began) / (done - first)
        self._console.print(
            f"  {done:,}/{self._of:,} {self._what}  {speed:,.0f} tokens/s  {duration(left)} left",
            soft_wrap=True,
        )
