"""What files held when they were looked at, and whether they still do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict


class SeenFile(TypedDict):
    """A file as it was."""

    name: str
    """Without its folder."""
    bytes: int
    sha256: str


def look(files: Iterable[Path]) -> list[SeenFile]:
    """What each of some files holds."""
    return [{"name": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files]


def is_as_seen(folder: Path, seen: SeenFile) -> bool:
    """Whether a file of that name in a folder holds what it held."""
    file = folder / seen["name"]
    return file.is_file() and file.stat().st_size == seen["bytes"] and _sha256(file) == seen["sha256"]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
