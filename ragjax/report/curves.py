"""The lines of `metrics.jsonl` as curves over tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ragjax.report.charts import Point, Series
from ragjax.report.numbers import finite
from ragjax.report.read import Run

SETTLED = 0.2
"""Share of each stage after which its losses set the range of the axis."""


def series(run: Run, key: str, stages: Sequence[str] | None = None) -> list[Series]:
    """One line for each stage that logged `key` and has a finite value of it.

    Args:
      run: the run.
      key: a key of the metrics: "cross_entropy", "validation_loss", "sparsity", ...
      stages: stages to look at; none: all.
    """
    found = []
    for stage, entries in run.metrics.items():
        if stages is not None and stage not in stages:
            continue
        points = _points(entries, key)
        if any(value is not None for _, value in points):
            found.append(Series(stage, stage.capitalize(), points))
    return found


def has_tokens(run: Run) -> bool:
    """Whether the x axis of `series` is tokens; otherwise it is steps."""
    return all(any(finite(e.get("tokens")) for e in entries) for entries in run.metrics.values())


def settled_range(lines: Sequence[Series]) -> tuple[float, float]:
    """Lowest value, and the highest after the first fifth of each line; the highest of all if near."""
    late, every = [], []
    for line in lines:
        begin = SETTLED * line.points[-1][0]
        values = [value for _, value in line.points if value is not None]
        every += values
        late += [value for at, value in line.points if value is not None and at >= begin] or values[-1:]
    low, high = min(every), max(late)
    # A little more than the range is nothing to cut.
    is_near = max(every) <= high + 0.25 * (high - low)
    return low, max(every) if is_near else high


def stage_totals(entries: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Last step, tokens read, seconds, median tokens per second, and steps skipped of a stage."""
    speeds = sorted(v for e in entries if (v := finite(e.get("tokens_per_second"))) is not None)

    def most(key: str) -> float | None:
        return max((v for e in entries if (v := finite(e.get(key))) is not None), default=None)

    return {
        "steps": most("step"),
        "tokens": most("tokens"),
        "seconds": most("time"),
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "skipped": most("skipped"),
    }


def _points(entries: Sequence[dict[str, Any]], key: str) -> list[Point]:
    """(tokens, value) of each entry with `key`; lines without tokens get those of their step."""
    known = [(e["step"], t) for e in entries if (t := finite(e.get("tokens"))) is not None]
    return [
        (_tokens_at(e["step"], known) if known else float(e["step"]), finite(e[key]))
        for e in entries
        if key in e
    ]


def _tokens_at(step: float, known: Sequence[tuple[float, float]]) -> float:
    """Tokens read at `step`: interpolated, and beyond the ends at the pace of the whole."""
    at = bisect_left(known, (step, 0.0))
    if at < len(known) and known[at][0] == step:
        return known[at][1]
    if at == 0 or at == len(known):
        last_step, last_tokens = known[-1]
        return last_tokens * step / last_step if last_step else 0.0
    (s0, t0), (s1, t1) = known[at - 1 : at + 1]
    return t0 + (t1 - t0) * (step - s0) / (s1 - s0)
