"""Measurement."""

from __future__ import annotations

from dataclasses import dataclass

from ragjax.config.checked import Checked, at_least


@dataclass(frozen=True)
class Evaluate(Checked):
    """How models are measured at the end."""

    sequence_length: int | None = None
    """Tokens the model sees at once; none: as many as it has positions, 2048 at most."""
    stride: int | None = None
    """Tokens the window moves; none: half of `sequence_length`."""
    max_tokens: int | None = None
    """Tokens that are scored at most; none: all."""
    batch_size: int = 8
    """Windows evaluated at once."""
    speed_rounds: int = 5
    """Interleaved rounds of the forward-speed measurement; their median counts."""
    prompts: tuple[str, ...] = ()
    """Prompts of the samples in the report; none: beginnings of validation documents."""
    sample_tokens: int = 60
    """Tokens generated for each sample."""

    def _problems(self) -> list[str]:
        found = at_least(self, 1, "batch_size", "speed_rounds", "sample_tokens")
        for name, low in (("sequence_length", 2), ("stride", 1), ("max_tokens", 1)):
            if getattr(self, name) is not None:
                found += at_least(self, low, name)
        length, stride = self.sequence_length, self.stride
        if length is not None and stride is not None and stride > length:
            found.append(f"stride {stride} must not exceed sequence_length {length}")
        return found
