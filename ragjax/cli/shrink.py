"""The verb `shrink`."""

from __future__ import annotations

from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ragjax.cli.arguments import ModelName
from ragjax.config import Mesh, Shrink


@dataclass(frozen=True)
class _ShrinkCommand:
    """Take neurons, heads, width or layers out of a model's arrays, and write the smaller one.

    A budget (--params, --flops, --latency), sizes, or both say how small; a text shows what matters.
    """

    model: ModelName
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; must not exist."""
    config: Annotated[Shrink, arg(name="")]
    data: str | None = None
    """Source URI of a text on which perplexity is measured before and after; none: it is not."""
    max_tokens: int | None = None
    """Tokens of it that are scored at most; none: all."""
    mesh: Mesh = field(default_factory=lambda: Mesh(data=1))
    """Devices that share the work; the rest stand by. What is left can be split over them again."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def run(given: list[str]) -> None:
    """Does `ragjax shrink`, given the words that follow it."""
    command = tyro.cli(_ShrinkCommand, args=given, prog="ragjax shrink")
    from ragjax.shrinking.verb import print_comparison, shrink_to_folder, summary

    compared = shrink_to_folder(
        command.model, command.out, command.config, devices=command.mesh,
        data=command.data, max_tokens=command.max_tokens, to_stderr=command.json,
    )  # fmt: skip
    if command.json:
        print(dumps(summary(compared, command.out)))
    else:
        print_comparison(compared, command.model, command.out)
