"""JSON files that hold one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ragjax.errors import InputError


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      InputError: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: a JSON object was expected, this is no JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: a JSON object was expected, found a {type(value).__name__}.")
    return value


def write_object(file: Path, value: dict[str, Any]) -> None:
    """Writes `value` as indented JSON."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
