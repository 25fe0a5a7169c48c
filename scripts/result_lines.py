"""Results of a script that may be stopped and started at any time: one line of JSON each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def read(out: Path) -> list[dict]:
    """The results there are; a last line that was cut off is passed over."""
    lines = out.read_text().split("\n")[:-1] if out.exists() else []
    return [json.loads(line) for line in lines]


def fill(missing: Sequence[object], out: Path) -> None:
    """Makes each missing result in a process of its own, which this script is again with `--cell`.

    Args:
      missing: what names each result, as JSON values.
      out: the file that gets a line each; what fails is told, and left out.
    """
    for number, wanted in enumerate(missing, 1):
        command = [sys.executable, *sys.argv, "--cell", json.dumps(wanted)]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode:
            print(f"{wanted}: failed\n{told.stderr}", file=sys.stderr)
            continue
        with out.open("a") as file:
            file.write(told.stdout.splitlines()[-1] + "\n")
        print(f"{number}/{len(missing)} {told.stdout.splitlines()[-1]}", flush=True)
