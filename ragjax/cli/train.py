"""The verb `train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ragjax.cli.run_command import long_work, read_command
from ragjax.config import Pretrain


@dataclass(frozen=True)
class _TrainCommand:
    """Train one model, from scratch or on from another; the same command goes on where it stopped.

    Any field of the config can be set here. The result is RUN/model, a Hugging Face folder.
    """

    config: Annotated[Pretrain, arg(name="")]
    workdir: Path | None = None
    """RUN, the run folder; none: runs/NAME-OF-CONFIG."""


def run(given: list[str]) -> None:
    """Does `ragjax train`, given the words that follow it."""
    command, workdir = read_command("train", given, _TrainCommand, Pretrain)
    from ragjax.recipe import pretrain

    long_work(lambda: pretrain(command.config, workdir), f"ragjax train {workdir / 'config.json'}")
