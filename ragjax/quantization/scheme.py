"""In how many bits weights are kept, how many of them share a scale, and whether inputs are rounded too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.quantize import group_problems
from ragjax.errors import InputError, listing


@dataclass(frozen=True)
class Scheme:
    """How the weights of a matrix become integers.

    Raises:
      InputError: the parts do not go together; names all that is wrong.

    Example:
      >>> SCHEMES["int4"].bits_per_weight(inputs=768)
      4.5
    """

    bits: Literal[4, 8] = 8
    """Bits of a weight."""
    group: int = 0
    """Consecutive inputs that share a scale, for each output; 0: all inputs of an output."""
    symmetric: bool = True
    """Whether 0 is the integer 0; else the integer that stands for 0 is chosen for each group."""
    activations: Literal[8] | None = None
    """Bits to which the inputs are rounded, with a scale for each token; none: they stay as they are."""

    def __post_init__(self) -> None:
        found = []
        if self.bits not in (4, 8):
            found.append(f"bits must be 4 or 8, found {self.bits!r}")
        found += group_problems(self.bits, self.group)
        if self.activations not in (None, 8):
            found.append(f"activations must be 8 or none, found {self.activations!r}")
        if self.activations and (self.bits, self.group, self.symmetric) != (8, 0, True):
            found.append(
                "activations of 8 bits go with symmetric weights of 8 bits and one scale an output "
                f"(group 0), found {self.bits} bits, group {self.group}, symmetric {self.symmetric}"
            )
        if found:
            raise InputError(f"Weights cannot be quantized so:\n{listing(found)}")

    @property
    def lowest(self) -> int:
        """The least integer a weight may become."""
        # Of 8 bits -128 is left out, so that what is symmetric has as many steps on either side.
        return -127 if self.bits == 8 and self.symmetric else -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest integer a weight may become."""
        return 2 ** (self.bits - 1) - 1

    def groups(self, inputs: int) -> int:
        """How many groups so many inputs make."""
        return inputs // self.group if self.group else 1

    def bits_per_weight(self, inputs: int) -> float:
        """Bits a weight takes with its share of scales (16 bits) and of zero points (8)."""
        shared = 16 if self.symmetric else 24
        return self.bits + shared * self.groups(inputs) / inputs


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme(bits=8),
    "int4": Scheme(bits=4, group=32),
    "int8_activations": Scheme(bits=8, activations=8),
}
"""Schemes by their name in the config."""
