"""Measurement of how fast models write."""

from __future__ import annotations

from dataclasses import dataclass

from ragjax.config.checked import Checked, at_least


@dataclass(frozen=True)
class Bench(Checked):
    """What models are given to write, and how often."""

    batch: tuple[int, ...] = (1, 8)
    """Prompts at once; each number is measured."""
    prompt_tokens: int = 0
    """Random tokens that each prompt has; 0: 128, or as many as all models have room for."""
    new_tokens: int = 64
    """Tokens that follow it: the first is timed with the prompt, the others by themselves."""
    rounds: int = 5
    """Turns of each model that are timed."""
    threads: int | None = None
    """Threads of each model that onnxruntime runs; none: as many as there are cores. JAX uses all."""

    def _problems(self) -> list[str]:
        found = at_least(self, 0, "prompt_tokens") + at_least(self, 1, "rounds")
        found += at_least(self, 2, "new_tokens")
        if not self.batch or min(self.batch) < 1 or len({*self.batch}) < len(self.batch):
            told = " ".join(map(str, self.batch)) or "none"
            found.append(f"batch must be numbers of at least 1, each once, found {told}")
        if self.threads is not None:
            found += at_least(self, 1, "threads")
        return found
