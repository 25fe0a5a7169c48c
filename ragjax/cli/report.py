"""The verb `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg


def run(given: list[str]) -> None:
    """Does `ragjax report`, given the words that follow it."""
    tyro.cli(_report, args=given, prog="ragjax report")


def _report(run: Annotated[Positional[Path], arg(metavar="RUN")], out: Path | None = None) -> None:
    """Write the report of a run again.

    Args:
        run: The run folder.
        out: File to write; none: RUN/report.html.
    """
    from ragjax.report import write_report

    print(write_report(run, out))
