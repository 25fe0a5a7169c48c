"""The verb `prune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ragjax.cli import compare
from ragjax.cli.arguments import ModelName
from ragjax.cli.run_command import long_work
from ragjax.config import Mesh, OneShot


@dataclass(frozen=True)
class _PruneCommand:
    """Remove weights of a trained model at once, and write the sparse one as a Hugging Face folder.

    A text shows which weights matter. The model goes by block by block, so that one that fits into the
    host's memory can be pruned on a small device. Blocks that are done are kept in OUT.unfinished until OUT
    is there: the same command goes on where it stopped.

    With --compare magnitude,wanda it prunes in several ways and measures each, and OUT holds the comparison:
    ragjax prune --compare --help.
    """

    model: ModelName
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; must not exist."""
    config: Annotated[OneShot, arg(name="")]
    mesh: Mesh = field(default_factory=lambda: Mesh(data=1))
    """Devices that share the work; the rest stand by."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def run(given: list[str]) -> None:
    """Does `ragjax prune`, given the words that follow it."""
    if any(word.split("=")[0] == "--compare" for word in given):
        compare.run(given)
        return
    command = tyro.cli(_PruneCommand, args=given, prog="ragjax prune")
    from ragjax.pruning.verb import print_report, prune_to_folder, summary
    from ragjax.sparsity.calibrated.in_turn import spare_memory

    spare_memory()
    report = long_work(
        lambda: prune_to_folder(
            command.model, command.out, command.config, devices=command.mesh, to_stderr=command.json
        ),
        "the same command",
    )
    if command.json:
        print(dumps(summary(report, command.out)))
    else:
        print_report(report, command.out)
