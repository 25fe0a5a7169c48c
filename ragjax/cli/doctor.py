"""The verb `doctor`."""

from __future__ import annotations

from json import dumps

import tyro
from tyro.conf import FlagCreatePairsOff

from ragjax.cli.exits import EXIT_BAD_INPUT


def run(given: list[str]) -> None:
    """Does `ragjax doctor`, given the words that follow it."""
    raise SystemExit(tyro.cli(_doctor, args=given, prog="ragjax doctor"))


def _doctor(json: FlagCreatePairsOff[bool] = False) -> int:
    """Tell what this machine offers and what is amiss.

    Args:
        json: Print one JSON object.
    """
    from ragjax.doctor import examine, print_findings

    findings = examine()
    if json:
        print(dumps(findings))
    else:
        print_findings(findings)
    return EXIT_BAD_INPUT if findings["problems"] else 0
