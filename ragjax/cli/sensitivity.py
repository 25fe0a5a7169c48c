"""The verb `sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ragjax.cli.arguments import ModelName
from ragjax.cli.run_command import long_work
from ragjax.config import OneShot


@dataclass(frozen=True)
class _SensitivityCommand:
    """Measure how the loss grows when one matrix of one layer is pruned, for each of them.

    Writes curves (sensitivity.json), the sparsities by which --sparsity costs least (budget.json, for
    `ragjax prune --budget table --table`; n_of_m has none), and report.html. What is done is kept in
    OUT.unfinished until OUT is there: the same command goes on where it stopped.
    """

    model: ModelName
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; must not exist."""
    config: Annotated[OneShot, arg(name="")]
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Shares of a matrix's weights that are removed."""
    sequences: int = 8
    """Sequences of held-out text by which losses are measured."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def run(given: list[str]) -> None:
    """Does `ragjax sensitivity`, given the words that follow it."""
    command = tyro.cli(_SensitivityCommand, args=given, prog="ragjax sensitivity")
    from ragjax.pruning.files import print_sensitivity, sensitivity_to_folder

    found = long_work(
        lambda: sensitivity_to_folder(
            command.model, command.out, command.config,
            sparsities=command.sparsities, sequences=command.sequences, to_stderr=command.json,
        ),
        "the same command",
    )  # fmt: skip
    if command.json:
        print(dumps(found))
    else:
        print_sensitivity(found, command.model, command.out)
