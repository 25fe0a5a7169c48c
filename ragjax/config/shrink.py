"""Shrinking a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked, at_least

Importance = Literal["activation", "taylor", "magnitude", "random"]
Shrinkable = Literal["neurons", "heads", "width", "layers"]


@dataclass(frozen=True)
class Shrink(Checked):
    """How small a trained model is made, and what stays of it.

    Either a budget (params, flops or latency), sizes (layers, width, heads, kv_heads, mlp_width), or both: a
    size that is given is not searched for.
    """

    params: float | None = None
    """Budget: parameters, as a share of the model's."""
    flops: float | None = None
    """Budget: operations of the forward pass a token, as a share of the model's."""
    latency: float | None = None
    """Budget: seconds of the forward pass on this device, as a share of the model's; candidates are timed."""
    what: tuple[Shrinkable, ...] = ()
    """What a budget may shrink; none: neurons, heads, and the width where heads have to fill it (GPT-2)."""
    layers: int | None = None
    """Transformer blocks that stay."""
    width: int | None = None
    """Residual width that stays."""
    heads: int | None = None
    """Query heads that stay; none: all, or as many as the model's family can write with `width`."""
    kv_heads: int | None = None
    """Heads of keys and values that stay; none: with `heads`, by whole groups where that comes out even."""
    mlp_width: int | None = None
    """Neurons of an MLP that stay."""
    importance: Importance = "activation"
    """What makes a part worth keeping."""
    compensate: bool = True
    """Refit the projections that read heads and neurons, so that what stays makes up for what went."""
    multiple: int = 8
    """Budgets choose neurons and width in multiples of it; 128 is a TPU's tile."""
    tensor: int = 1
    """Devices that will split each layer: heads and neurons stay divisible by it."""
    batch_size: int = 1
    """latency: sequences at once."""
    length: int | None = None
    """flops, latency: tokens in a sequence; none: the model's positions, 512 at most."""
    calibration: str = "builtin:python"
    """Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME."""
    samples: int = 128
    """Sequences of the calibration text."""
    sequence_length: int | None = None
    """Tokens in a calibration sequence; none: the model's positions, 256 at most."""
    seed: int = 0
    """Seed of the choice of sequences, and of random importance."""

    def _problems(self) -> list[str]:
        budgets = [name for name in ("params", "flops", "latency") if getattr(self, name) is not None]
        sizes = ("layers", "width", "heads", "kv_heads", "mlp_width")
        given = [name for name in (*sizes, "length", "sequence_length") if getattr(self, name) is not None]
        found = at_least(self, 1, "multiple", "tensor", "batch_size", "samples", *given)
        found += [
            f"{name} must lie between 0 and 1, found {getattr(self, name)!r}"
            for name in budgets
            if not 0 < getattr(self, name) < 1
        ]
        if len(budgets) > 1:
            found.append(f"there can be one budget, found {', '.join(budgets)}: leave out all but one")
        if not budgets and not set(given) & set(sizes):
            found.append(f"a budget (params, flops, latency) or a size ({', '.join(sizes)}) must be given")
        if self.what and not budgets:
            found.append("what says what a budget may shrink: give params, flops or latency, or leave it out")
        named = {"neurons": "mlp_width", "heads": "heads", "width": "width", "layers": "layers"}
        found += [
            f"{field} is given, so that a budget cannot choose {kind}: leave one of them out"
            for kind, field in named.items()
            if kind in self.what and field in given
        ]
        if not self.calibration:
            found.append("calibration must name a source, found an empty string")
        return found
