"""The layout of devices."""

from __future__ import annotations

from dataclasses import dataclass

from ragjax.config.checked import Checked


@dataclass(frozen=True)
class Mesh(Checked):
    """How the devices are laid out; at most one axis may be -1, which takes what is left."""

    data: int = -1
    """Copies of the model, each with its own part of the batch."""
    fsdp: int = 1
    """Devices that share each copy's parameters and also split its batch."""
    tensor: int = 1
    """Devices that split each layer's matrices."""

    def _problems(self) -> list[str]:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        found = [f"{n} must be -1 or at least 1, found {s}" for n, s in sizes.items() if s < 1 and s != -1]
        if list(sizes.values()).count(-1) > 1:
            found.append("only one of data, fsdp, tensor may be -1")
        return found
