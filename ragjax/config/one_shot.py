"""Pruning a trained model at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked, at_least, below_one
from ragjax.config.sparsity import Pattern

OneShotMethod = Literal["magnitude", "random", "wanda", "ria", "sparsegpt", "alps"]
OneShotBudget = Literal["uniform", "erk", "owl", "global", "table"]


@dataclass(frozen=True)
class OneShot(Checked):
    """Which weights of a trained model are removed at once, guided by a calibration text."""

    method: OneShotMethod = "wanda"
    """What chooses the weights; sparsegpt and alps also change those that stay."""
    sparsity: float | None = None
    """Share of the prunable weights that is removed; none: 0.5, or what n and m say."""
    pattern: Pattern | None = None
    """Where weights compete: tensor, row (of an output), n_of_m, block; global is tensor with the budget
    global. None: what the method's paper does, row for wanda and ria, tensor for the others."""
    n: int = 2
    """n_of_m: weights kept in each group."""
    m: int = 4
    """n_of_m: consecutive inputs in a group."""
    block: tuple[int, int] = (8, 128)
    """block: inputs and outputs of a block; 8 x 128 and 128 x 128 are a TPU's tiles."""
    budget: OneShotBudget = "uniform"
    """How sparsity is shared out: alike, by a matrix's shape (erk), by a layer's outliers (owl), as when
    all scores are ranked together (global), or as a file says (table)."""
    table: str | None = None
    """table: JSON file of sparsities by name pattern, each one number or one for each layer."""
    calibration: str = "builtin:python"
    """Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME."""
    samples: int = 128
    """Sequences of the calibration text."""
    sequence_length: int | None = None
    """Tokens in a sequence; none: as many as the model has positions, 1024 at most."""
    batch_size: int = 8
    """Sequences that are on the device at once, at most."""
    dampening: float = 0.01
    """sparsegpt, alps: added to the diagonal of the gram, as a share of its mean."""
    seed: int = 0
    """Seed of the choice of sequences, and of random scores."""
    prunable: tuple[str, ...] = ("layers/*/kernel",)
    """Names of the parameters that may be pruned, as shell patterns over the whole path."""

    def _problems(self) -> list[str]:
        found = at_least(self, 1, "n", "m", "samples", "batch_size")
        found += below_one(self, "sparsity") if self.sparsity is not None else []
        found += at_least(self, 2, "sequence_length") if self.sequence_length is not None else []
        if min(self.block) < 1:
            found.append(f"block must have sides of at least 1, found {self.block}")
        if not self.dampening > 0:
            found.append(f"dampening must be above 0, found {self.dampening!r}")
        if not self.calibration:
            found.append("calibration must name a source, found an empty string")
        if not self.prunable:
            found.append("prunable must name at least one pattern, such as 'layers/*/kernel'")
        return found + self._misfits()

    def _misfits(self) -> list[str]:
        """Fields that do not go together."""
        found = []
        if self.pattern == "n_of_m" and self.m > 0:
            if not self.n < self.m:
                found.append(f"n must be below m, found {self.n} of {self.m}")
            elif self.sparsity is not None and abs(self.sparsity - (1 - self.n / self.m)) > 1e-9:
                found.append(
                    f"{self.n} of {self.m} removes {1 - self.n / self.m:g} of the weights, "
                    f"sparsity says {self.sparsity:g}: leave it out"
                )
            if self.budget != "uniform":
                found.append(f"n_of_m removes as much everywhere: budget {self.budget} has nothing to share")
        if self.pattern == "global" and self.budget not in ("uniform", "global"):
            found.append(f"the pattern global is a budget of its own, found budget {self.budget}")
        if (self.budget == "table") != (self.table is not None):
            found.append(
                f"budget table and a file in `table` go together, found {self.budget} and {self.table!r}"
            )
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern == "global":
            object.__setattr__(self, "pattern", "tensor")
            object.__setattr__(self, "budget", "global")
        if self.sparsity is None:
            share = 1 - self.n / self.m if self.pattern == "n_of_m" else 0.5
            object.__setattr__(self, "sparsity", share)
