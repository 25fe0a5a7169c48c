"""What a cache was made from, what it holds, and its files, byte for byte."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ragjax.config_file import differences
from ragjax.errors import InputError
from ragjax.interchange.atomic import atomic_file

NAME = "cache.json"
WINDOWS = "windows.safetensors"
"""The number of the window that each row is of."""
_FORMAT = 1
_NARROW = 1 << 16
"""Vocabularies up to this many tokens are numbered in two bytes."""


@dataclass(frozen=True)
class Kept:
    """What is kept of each distribution."""

    kind: Literal["likeliest", "drawn"]
    """The likeliest tokens with all others as one, or tokens drawn."""
    count: int
    """How many."""
    dtype: Literal["float16", "float32"]
    """Type of the log-probabilities."""
    temperature: float
    """What the teacher's logits were divided by."""
    seed: int = 0
    """Of the draws."""


@dataclass(frozen=True)
class Held:
    """What a cache was made from, and what it holds."""

    text: str
    """SHA-256 of the tokens."""
    teacher: str
    """SHA-256 of the teacher's config and parameters."""
    computed_in: str
    """Type the teacher was run in."""
    vocab_size: int
    sequence_length: int
    isolate_documents: bool
    windows: int
    """Sequences the text is cut into."""
    sequences: int
    """How many of them are held."""
    which: str
    """SHA-256 of their numbers."""
    kept: Kept

    @property
    def columns(self) -> dict[str, tuple[int, np.dtype]]:
        """For each array of a shard, the numbers a token takes in it, and their type."""
        ids = np.dtype(np.uint16 if self.vocab_size <= _NARROW else np.uint32)
        logs = self.kept.count + (self.kept.kind == "likeliest")
        return {"ids": (self.kept.count, ids), "log_probs": (logs, np.dtype(self.kept.dtype))}

    @property
    def bytes_per_token(self) -> int:
        """Storage of one distribution."""
        return sum(numbers * dtype.itemsize for numbers, dtype in self.columns.values())

    @property
    def tokens(self) -> int:
        """Distributions that are held."""
        return self.sequences * self.sequence_length


@dataclass(frozen=True)
class Manifest:
    """A cache's contents."""

    held: Held
    rows_per_shard: int
    """Sequences in a file, but for the last."""
    files: dict[str, list] | None = None
    """Bytes and SHA-256 of every file by its name; none: not finished."""

    @property
    def shards(self) -> int:
        """Files the sequences are in."""
        return -(-self.held.sequences // self.rows_per_shard)

    def rows(self, shard: int) -> range:
        """The sequences in a shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.held.sequences))

    @property
    def identity(self) -> str:
        """SHA-256 of all that a training depends on."""
        return _digest(asdict(self))


def shard_name(number: int) -> str:
    """The file of a shard, whatever host writes it."""
    return f"shard-{number:06}.safetensors"


def windows_digest(windows: np.ndarray) -> str:
    """SHA-256 of the numbers of windows."""
    return sha256(np.ascontiguousarray(windows, "<i8").tobytes()).hexdigest()


def unlike(there: Held, here: Held) -> list[str]:
    """The ways in which two caches were made differently, a line for each."""
    found = differences(asdict(there), asdict(here))
    return [f"{name}: {_short(old)} there, {_short(new)} now" for name, (old, new) in found.items()]


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else repr(value)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest whole or not at all."""
    contents = {"format": _FORMAT, **asdict(manifest)}
    with atomic_file(folder / NAME, overwrite=True) as file:
        file.write_text(json.dumps({"sha256": _digest(contents), "contents": contents}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache, finished or not; none where there is none.

    Raises:
      InputError: it was altered, or is of another version of ragjax.
    """
    try:
        stored = json.loads((folder / NAME).read_bytes())
        contents, digest = stored["contents"], stored["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / NAME} cannot be read ({error!r}): {_ANOTHER}") from None
    if digest != _digest(contents):
        raise InputError(f"{folder / NAME} was altered: {_ANOTHER}")
    if contents.pop("format") != _FORMAT:
        raise InputError(f"{folder} is a cache of another version of ragjax: {_ANOTHER}")
    held = contents["held"]
    return Manifest(
        Held(**{**held, "kept": Kept(**held["kept"])}), contents["rows_per_shard"], contents["files"]
    )


def damage(folder: Path, manifest: Manifest, name: str, *, deep: bool = True) -> str | None:
    """What is amiss with a file of a finished cache; none: nothing.

    Args:
      folder: the cache.
      manifest: its manifest.
      name: the file.
      deep: read it through, and not look at its size alone.
    """
    assert manifest.files is not None
    size, digest = manifest.files[name]
    try:
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
        altered = deep and file_sha256(folder / name) != digest
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    return f"{name} was altered: its SHA-256 differs" if altered else None


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


_ANOTHER = "write another with `ragjax cache-teacher CONFIG OUT`."


def _digest(contents: dict[str, Any]) -> str:
    return sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
