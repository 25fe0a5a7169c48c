"""How a command ends where something is amiss: a line on standard error, and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 130


def fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Says on standard error why the command ends, and exits with `code`."""
    print(f"ragjax: {message}", file=sys.stderr)
    raise SystemExit(code)
