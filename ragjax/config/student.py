"""The model that learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked


@dataclass(frozen=True)
class Student(Checked):
    """Where the student starts."""

    model: str | None = None
    """MODEL it starts from, of the teacher's vocabulary: a smaller sibling, or the teacher after `ragjax
    shrink`; none: the teacher."""
    layers: int | tuple[int, ...] | None = None
    """Layers of that model it keeps: how many (evenly, with both ends), or which; none: all."""
    keeps: Literal["all", "embeddings", "shape"] = "all"
    """What it keeps of those layers and their model: all; the embeddings, the rest being random; or shape."""
    control: bool = True
    """Also train the control: the same start, sparsity, tokens and steps, without the teacher's loss."""
    scratch: bool = False
    """Also train a student of the same shape from a random start."""

    def _problems(self) -> list[str]:
        chosen = (self.layers,) if isinstance(self.layers, int) else self.layers or ()
        low = 1 if isinstance(self.layers, int) else 0
        found = [f"layers must be at least {low}, found {n}" for n in chosen if n < low]
        if isinstance(self.layers, tuple) and list(self.layers) != sorted(set(self.layers)):
            found.append(f"layers must rise without repeats, found {self.layers}")
        if self.layers == ():
            found.append("layers must name at least one layer, found an empty list")
        return found
