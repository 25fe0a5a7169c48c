"""The run's metrics: JSON lines on disk, one line at a time on the terminal."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ragjax.duration import duration


class MetricsLog:
    """Appends JSON lines to `metrics.jsonl`.

    Lines of a stage that lie at or beyond the step it resumes from are dropped, so that a resumed
    run's file reads like an uninterrupted one's.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path, self.writes = path, writes

    def resume(self, stage: str, step: int) -> float:
        """Forgets what `stage` wrote after `step`; returns the seconds it had taken until then."""
        entries = [entry for line in self._lines() if (entry := _parsed(line)) is not None]
        kept = [entry for entry in entries if entry["stage"] != stage or entry["step"] <= step]
        if self.writes and self.path.exists():
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
            partial.replace(self.path)
        return self._seconds(kept, stage)

    def seconds(self, stage: str) -> float:
        """The seconds that `stage` has taken, before and after every stop, up to the last line it wrote."""
        return self._seconds([entry for line in self._lines() if (entry := _parsed(line))], stage)

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def _seconds(self, entries: list[dict], stage: str) -> float:
        times = [e["time"] for e in entries if e["stage"] == stage and isinstance(e.get("time"), int | float)]
        return max(times, default=0.0)

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Adds one line; numbers that are not finite are written as null."""
        if not self.writes:
            return
        entry = {"stage": stage, "step": step} | {name: _plain(value) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _parsed(line: str) -> dict | None:
    """The entry in a line; none where it is cut off or no entry."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    whole = isinstance(entry, dict) and "stage" in entry and isinstance(entry.get("step"), int)
    return entry if whole else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


class Progress:
    """Prints how a training goes: step, losses, speed, and how long it will still take."""

    def __init__(self, stage: str, steps: int, console: Console):
        self.stage, self.steps, self.console = stage, steps, console
        self.begin_time = self.mark_time = time.monotonic()
        self.mark_step = 0
        self.earlier = 0.0

    def begin(self, step: int, *, seconds: float = 0.0) -> None:
        """Starts the clock at `step`, which it took `seconds` to reach before it was resumed."""
        self.begin_time = self.mark_time = time.monotonic()
        self.earlier = seconds
        self.mark_step = step
        came = f", resumed at step {step}" if step else ""
        self.console.print(f"[bold]{self.stage}[/bold]: {self.steps} steps{came}", highlight=False)

    @property
    def seconds(self) -> float:
        """Of training, before and after every stop."""
        return self.earlier + time.monotonic() - self.begin_time

    def steps_per_second(self, step: int) -> float:
        """The rate since it was last asked for, so that compiling slows the first figure alone."""
        now, before = time.monotonic(), self.mark_time
        steps, self.mark_time, self.mark_step = step - self.mark_step, now, step
        return steps / max(now - before, 1e-9)

    def line(self, step: int, values: dict[str, float], *, steps_per_second: float) -> None:
        """One line of figures, those of `values` that are there."""
        left = (self.steps - step) / max(steps_per_second, 1e-9)
        shown = [f"step {step:>{len(str(self.steps))}}/{self.steps}", f"loss {values['loss']:.4f}"]
        names = {"cross_entropy": "ce", "forward_kl": "kl", "hidden_mse": "hidden"}
        shown += [f"{short} {values[name]:.4f}" for name, short in names.items() if name in values]
        if values.get("sparsity"):
            shown.append(f"sparsity {values['sparsity']:.1%}")
        if "on_policy" in values:
            length = f" ({values['written_tokens']:.0f} tokens)" if "written_tokens" in values else ""
            shown.append(f"on-policy {values['on_policy']:.0%}{length}")
        if values.get("skipped"):
            shown.append(f"skipped {values['skipped']}")
        shown.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        shown.append(f"{duration(left)} left")
        self.console.print("  " + "  ".join(shown), highlight=False, soft_wrap=True)

    def validation(self, step: int, loss: float) -> None:
        """One line of validation loss, in nats a token."""
        self.console.print(f"  step {step}: validation loss {loss:.4f}", highlight=False)
