"""Pruning while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked, at_least, below_one

Score = Literal["magnitude", "random", "saliency"]
Pattern = Literal["tensor", "row", "global", "n_of_m", "block"]
SparsityMethod = Literal["gradual", "movement", "ste", "sr_ste", "set", "rigl", "ac_dc", "rewind"]
SparsitySchedule = Literal["one_shot", "periodic", "cubic", "polynomial", "cosine", "geometric"]
Budget = Literal["uniform", "erk"]


@dataclass(frozen=True)
class Sparsity(Checked):
    """Which weights are removed, and when."""

    target: float = 0.0
    """Share of the prunable weights that is removed; 0: none. For n_of_m it is what n and m say."""
    method: SparsityMethod = "gradual"
    """How weights go, and whether they come back."""
    score: Score = "magnitude"
    """What makes a weight worth keeping; movement has its own."""
    pattern: Pattern = "tensor"
    """Where the lowest scores are looked for: a tensor, an output row, the whole model, n of m, or blocks."""
    n: int = 2
    """n_of_m: weights kept in each group."""
    m: int = 4
    """n_of_m: consecutive inputs in a group."""
    block: tuple[int, int] = (8, 128)
    """block: inputs and outputs of a block; 8 x 128 and 128 x 128 are a TPU's tiles."""
    budget: Budget = "uniform"
    """Sparsity of each matrix: the same, or by Erdos-Renyi-Kernel, which spares small and narrow ones."""
    schedule: SparsitySchedule = "cubic"
    """How sparsity grows from `start` to `stop`; set, rigl and ac_dc reach the target at once."""
    power: float = 3.0
    """polynomial: 1 is a straight line, 3 is cubic."""
    start: int = 0
    """First step that updates the masks."""
    stop: int | None = None
    """Step at which the target is reached, or regrowth or alternation ends; none: half of the training."""
    every: int = 10
    """Steps between updates of the masks; ac_dc: of a phase; rewind: of a round."""
    fraction: float = 0.3
    """set, rigl: share of the kept weights replaced at first, falling to 0 at `stop`; 0: static masks."""
    decay: float = 2e-4
    """sr_ste: how strongly masked weights are drawn to 0."""
    rewind_to: int = 0
    """rewind: step whose weights every round goes back to."""
    prunable: tuple[str, ...] = ("layers/*/kernel",)
    """Names of the parameters that may be pruned, as shell patterns over the whole path."""

    def _problems(self) -> list[str]:
        found = below_one(self, "target", "fraction") + at_least(self, 1, "every", "n", "m")
        found += at_least(self, 0, "start", "rewind_to", "decay")
        found += [f"block must have sides of at least 1, found {self.block}"] * (min(self.block) < 1)
        if not self.power > 0:
            found.append(f"power must be above 0, found {self.power!r}")
        if self.stop is not None and self.stop < self.start:
            found.append(f"stop must not lie before start, found {self.stop} and {self.start}")
        if self.pattern == "n_of_m" and self.m > 0:
            if not self.n < self.m:
                found.append(f"n must be below m, found {self.n} of {self.m}")
            elif self.target and abs(self.target - (1 - self.n / self.m)) > 1e-9:
                found.append(
                    f"{self.n} of {self.m} removes {1 - self.n / self.m:g} of the weights, "
                    f"target says {self.target:g}: set them alike"
                )
        if not self.prunable:
            found.append("prunable must name at least one pattern, such as 'layers/*/kernel'")
        return found + self._misfits()

    def _misfits(self) -> list[str]:
        """Fields that do not go together, or that would be passed over in silence."""
        found = [
            f"{name} is read by the method {' or '.join(methods)} alone, found {self.method!r}: "
            f"leave it at {default!r}"
            for name, methods in _READ_BY.items()
            if self.method not in methods and getattr(self, name) != (default := getattr(type(self), name))
        ]
        if self.method == "movement" and self.score != "magnitude":
            found.append(f"movement has its own score, found {self.score!r}: leave it at 'magnitude'")
        if self.method in ("set", "rigl") and self.pattern != "tensor":
            found.append(
                f"{self.method} regrows within a matrix: pattern must be 'tensor', found {self.pattern!r}"
            )
        if self.method == "rewind" and self.rewind_to > self.start:
            found.append(f"rewind_to must not lie after start, found {self.rewind_to} and {self.start}")
        if self.budget == "erk" and self.pattern in ("global", "n_of_m"):
            found.append(f"budget 'erk' needs the pattern 'tensor', 'row' or 'block', found {self.pattern!r}")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern == "n_of_m":
            object.__setattr__(self, "target", 1 - self.n / self.m)


_READ_BY: dict[str, tuple[str, ...]] = {
    "schedule": ("gradual", "rewind", "ste", "sr_ste", "movement"),
    "fraction": ("set", "rigl"),
    "decay": ("sr_ste",),
    "rewind_to": ("rewind",),
}
"""Fields of `Sparsity` that some methods alone read."""
