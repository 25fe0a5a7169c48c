"""The verb `quantize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ragjax.cli.arguments import ModelName
from ragjax.cli.run_command import long_work
from ragjax.config import Mesh, Quantize


@dataclass(frozen=True)
class _QuantizeCommand:
    """Keep the weights of a trained model in 8 or 4 bits each.

    What is written runs as any model: generate, eval, export. Methods that read a text keep the blocks that
    are done in OUT.unfinished until OUT is there: the same command goes on where it stopped.
    """

    model: ModelName
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; must not exist."""
    config: Annotated[Quantize, arg(name="")]
    format: Literal["quantized", "dequantized"] = "quantized"
    """quantized: integers and scales, which ragjax reads; dequantized: a Hugging Face folder of the floats
    they stand for, as large as MODEL."""
    data: str | None = None
    """Source URI of a text on which perplexity is measured before and after; none: it is not."""
    max_tokens: int | None = None
    """Tokens of it that are scored at most; none: all."""
    mesh: Mesh = field(default_factory=lambda: Mesh(data=1))
    """Devices that share the work; the rest stand by."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def run(given: list[str]) -> None:
    """Does `ragjax quantize`, given the words that follow it."""
    command = tyro.cli(_QuantizeCommand, args=given, prog="ragjax quantize")
    from ragjax.quantizing.verb import print_comparison, quantize_to_folder, summary
    from ragjax.sparsity.calibrated.in_turn import spare_memory

    spare_memory()
    compared = long_work(
        lambda: quantize_to_folder(
            command.model, command.out, command.config, format=command.format, devices=command.mesh,
            data=command.data, max_tokens=command.max_tokens, to_stderr=command.json,
        ),
        "the same command",
    )  # fmt: skip
    if command.json:
        print(dumps(summary(compared, command.out)))
    else:
        print_comparison(compared, command.model, command.out)
