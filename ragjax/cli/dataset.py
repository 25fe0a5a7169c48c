"""The verb `generate` with `--dataset`: a model writes a corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from ragjax.cli.arguments import ModelName
from ragjax.cli.run_command import long_work
from ragjax.config import Mesh, Writing


@dataclass(frozen=True)
class _DatasetCommand:
    """Complete the prompts of a source, and write both as JSON lines for students to learn from.

    The same command goes on where it stopped. Students train on it with
    --data.train jsonl:OUT.jsonl#prompt,completion,ended.
    """

    model: ModelName
    asked: Annotated[Writing, arg(name="")]
    dataset: Annotated[Path, arg(metavar="OUT.jsonl")]
    """File to write."""
    mesh: Mesh = field(default_factory=Mesh)
    """Device layout."""


def run(given: list[str]) -> None:
    """Does `ragjax generate MODEL --dataset OUT.jsonl`, given the words that follow the verb."""
    if {"-h", "--help"} & set(given):
        # Also where --dataset has no name after it.
        given = ["--help"]
    command = tyro.cli(_DatasetCommand, args=given, prog="ragjax generate")
    from ragjax.writing import write_dataset

    long_work(
        lambda: write_dataset(command.model, command.dataset, command.asked, devices=command.mesh),
        f"the same command: ragjax generate {command.model} --dataset {command.dataset} ...",
    )
