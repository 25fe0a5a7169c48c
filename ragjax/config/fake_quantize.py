"""Training for few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked
from ragjax.config.quantize import group_problems

TrainedScheme = Literal["none", "int8", "int4"]


@dataclass(frozen=True)
class FakeQuantize(Checked):
    """In how few bits the weights will be kept: the network computes with weights rounded to them."""

    scheme: TrainedScheme = "none"
    """As of `ragjax quantize`: int8, or int4; none: weights are not rounded."""
    group: int | None = None
    """Inputs that share a scale; none: as many as the scheme has, 0: all."""

    def _problems(self) -> list[str]:
        if self.group is not None and self.scheme == "none":
            return [
                f"group is of a scheme, found {self.group} and scheme 'none': set scheme, or leave it out"
            ]
        return group_problems(4 if self.scheme == "int4" else 8, self.group or 0)
