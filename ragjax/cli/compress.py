"""The verb `compress`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from ragjax.cli.run_command import long_work, read_command
from ragjax.config import Compress


@dataclass(frozen=True)
class _CompressCommand:
    """Compress a model: teacher, student, control, evaluation, report; each stage goes on where it stopped.

    Any field of the config can be set here. The result is RUN/student, a Hugging Face folder, and
    RUN/report.html.
    """

    config: Annotated[Compress, arg(name="")]
    workdir: Path | None = None
    """RUN, the run folder; none: runs/NAME-OF-CONFIG."""
    scratch: FlagCreatePairsOff[bool] = False
    """Also train a student of the same shape from a random start, as --student.scratch."""


def run(given: list[str]) -> None:
    """Does `ragjax compress`, given the words that follow it."""
    command, workdir = read_command("compress", given, _CompressCommand, Compress)
    config = command.config
    if command.scratch:
        config = replace(config, student=replace(config.student, scratch=True))
    from ragjax.recipe import compress

    long_work(lambda: compress(config, workdir), f"ragjax compress {workdir / 'config.json'}")
