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

    def resume(self, stage: str, step: int) -> None:
        """Forgets what `stage` wrote after `step`."""
        if not self.writes or not self.path.exists():
            return
        kept = [
            line
            for line in self.path.read_text().splitlines()
            if (entry := _parsed(line)) and not (entry["stage"] == stage and entry["step"] > step)
        ]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(self.path)

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Adds one line; numbers that are not finite are written as null."""
        if not self.writes:
            return
        entry = {"stage": stage, "step": step} | {name: _plain(value) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


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

    def begin(self, step: int) -> None:
        """Starts the clock at `step`."""
        self.begin_time = self.mark_time = time.monotonic()
        self.mark_step = step
        came = f", resumed at step {step}" if step else ""
        self.console.print(f"[bold]{self.stage}[/bold]: {self.steps} steps{came}", highlight=False)

    @property
    def seconds(self) -> float:
        """Since `begin`."""
        return time.monotonic() - self.begin_time

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
        if values.get("skipped"):
            shown.append(f"skipped {values['skipped']}")
        shown.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        shown.append(f"{duration(left)} left")
        self.console.print("  " + "  ".join(shown), highlight=False, soft_wrap=True)

    def validation(self, step: int, loss: float) -> None:
        """One line of validation loss, in nats a token."""
        self.console.print(f"  step {step}: validation loss {loss:.4f}", highlight=False)
