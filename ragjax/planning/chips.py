"""TPU chips by name, and the slices made of them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ragjax.errors import InputError


class Chip(NamedTuple):
    """What one chip offers, as its vendor states it: https://cloud.google.com/tpu/docs/system-architecture."""

    memory: float
    """Bytes of HBM."""
    flops: float
    """Bfloat16 operations a second, of all matrix units together."""
    flops_per_cycle: int
    """Operations of all matrix units together in a cycle: two for each cell of each array."""
    layout: str
    """Name by which libtpu knows the chip with its cores taken as one device."""

    @property
    def cycles_per_second(self) -> float:
        """Clock rate."""
        return self.flops / self.flops_per_cycle


CHIPS = {
    "v4": Chip(32e9, 275e12, 2 * 8 * 128**2, "megacore"),
    "v5e": Chip(16e9, 197e12, 2 * 4 * 128**2, "default"),
    "v5p": Chip(95e9, 459e12, 2 * 8 * 128**2, "megacore"),
    "v6e": Chip(32e9, 918e12, 2 * 4 * 256**2, "default"),
}


class Slice(NamedTuple):
    """Chips that are wired together."""

    name: str
    """As libtpu has it: v5e:4x4."""
    chip: Chip
    chips: int


def slice_named(topology: str) -> Slice:
    """The slice that is called, for example, v5e:4x4.

    A v4 or v5p slice is sold by its cores, two to a chip: v5p-128 is v5p:4x4x4.

    Raises:
      InputError: not a name of this form, or of a chip that is not known.

    Example:
      >>> slice_named("v5p:4x4x4").chips
      64
    """
    kind, _, sides = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sides):
        raise InputError(
            f"--topology must be a chip and the sides of a slice, such as v5e:4x4 or v5p:4x4x4, found "
            f"{topology!r}; chips are {', '.join(CHIPS)}."
        )
    return Slice(topology, CHIPS[kind], math.prod(map(int, sides.split("x"))))
