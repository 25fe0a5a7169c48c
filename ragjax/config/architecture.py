"""The shape of a model that is trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from ragjax.config.checked import Checked, at_least, below_one


@dataclass(frozen=True)
class Architecture(Checked):
    """A GPT-2 to train from scratch."""

    layers: int = 6
    """Transformer blocks."""
    width: int = 256
    """Residual width; divisible by `heads`."""
    heads: int = 4
    """Attention heads."""
    positions: int = 256
    """Longest sequence the model can read, in tokens."""
    windows: tuple[int, ...] = ()
    """Attention window of each layer in tokens, repeated to the depth; 0 is dense. GPT-3: (0, 256)."""
    dropout: float = 0.0
    """Dropout on embeddings, attention and residuals."""

    def _problems(self) -> list[str]:
        found = at_least(self, 1, "layers", "width", "heads", "positions") + below_one(self, "dropout")
        if not found and self.width % self.heads:
            found.append(f"width must be divisible by heads, found {self.width} and {self.heads}")
        found += [f"windows must not be negative, found {w}" for w in self.windows if w < 0]
        return found
