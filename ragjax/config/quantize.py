"""Quantizing a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked, at_least

SchemeName = Literal["int8", "int4", "int8_activations"]
QuantizeMethod = Literal["rtn", "gptq", "awq", "smoothquant"]


def group_problems(bits: int, group: int) -> list[str]:
    """Why so many inputs cannot share a scale of weights of so many bits; 0: all inputs."""
    if group < 0 or group == 1:
        return [f"group must be 0 (all inputs) or at least 2, found {group!r}"]
    if bits == 4 and group % 2:
        return [f"group must be even, as two weights of 4 bits share a byte, found {group}"]
    return []


@dataclass(frozen=True)
class Quantize(Checked):
    """In how few bits the weights of a trained model are kept, and what chooses their integers."""

    scheme: SchemeName = "int8"
    """int8: one scale an output; int4: one for each 32 inputs of an output; int8_activations: int8, and
    inputs are rounded to 8 bits too, each token by a scale of its own."""
    method: QuantizeMethod = "rtn"
    """rtn: each weight to the nearest; gptq: so that the weights after it make up for it; awq: after weights
    that meet large inputs were scaled up; smoothquant: after what is large in inputs moved into weights."""
    group: int | None = None
    """Inputs that share a scale, for each output; 0: all of them; none: as the scheme has it."""
    symmetric: bool | None = None
    """Whether 0 is the integer 0, or one chosen for each group; none: as the scheme has it."""
    tables: Literal["float", "int8"] = "float"
    """Table of tokens, and that of an untied head: as they are, or int8 with a scale for each token."""
    quantizable: tuple[str, ...] = ("layers/*/kernel",)
    """Names of the matrices that are quantized, as shell patterns over the whole path."""
    calibration: str = "builtin:python"
    """Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME; rtn reads no
    text."""
    samples: int = 128
    """Sequences of the calibration text."""
    sequence_length: int | None = None
    """Tokens in a sequence; none: as many as the model has positions, 1024 at most."""
    batch_size: int = 8
    """Sequences that are on the device at once, at most."""
    dampening: float = 0.01
    """gptq: added to the diagonal of X'X, as a share of its mean."""
    order: bool = False
    """gptq: take the inputs by how large they are, not as they lie."""
    strength: float = 0.5
    """smoothquant: how much of the largest activations moves into the weights, 0 to 1."""
    seed: int = 0
    """Seed of the choice of sequences."""

    def _problems(self) -> list[str]:
        found = at_least(self, 1, "samples", "batch_size")
        found += at_least(self, 2, "sequence_length") if self.sequence_length is not None else []
        if not self.dampening > 0:
            found.append(f"dampening must be above 0, found {self.dampening!r}")
        if not 0 <= self.strength <= 1:
            found.append(f"strength must lie in [0, 1], found {self.strength!r}")
        if not self.calibration:
            found.append("calibration must name a source, found an empty string")
        if not self.quantizable:
            found.append("quantizable must name at least one pattern, such as 'layers/*/kernel'")
        if self.scheme != "int8_activations":
            return found + group_problems(4 if self.scheme == "int4" else 8, self.group or 0)
        if self.group or self.symmetric is False:
            found.append(
                "scheme int8_activations has symmetric weights and one scale an output, found group "
                f"{self.group} and symmetric {self.symmetric}: leave both out"
            )
        return found
