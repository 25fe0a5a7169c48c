"""Results of a script that may be stopped and started at any time: one line of JSON each."""

from __future__ import annotations

import json
from pathlib import Path


def read(out: Path) -> list[dict]:
    """The results there are; a last line that was cut off is passed over."""
    lines = out.read_text().split("\n")[:-1] if out.exists() else []
    return [json.loads(line) for line in lines]
