"""What a checkpoint consists of, byte for byte: written once it is complete, checked before it is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

NAME = "manifest.json"
_PARTIAL = ".manifest.json.partial"


class ManifestError(Exception):
    """A manifest that is missing or not what was written."""


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's contents."""

    leaves: dict[str, str]
    """Type and shape of every array by its name in the tree."""
    fingerprint: dict[str, Any]
    """What identifies the run."""
    loss: float | None
    """Validation loss at the step; none where it was not measured."""
    files: dict[str, list]
    """Bytes and SHA-256 of every file by its path inside the folder."""


def leaf_names(tree: Any) -> list[str]:
    """The path of every array in `tree`, such as params/layers/mlp/up/kernel, in the tree's order."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two arrays of a tree have one name: {', '.join(twice)}")
    return names


def describe_leaves(tree: Any) -> dict[str, str]:
    """Type and shape of every array in `tree` by its name, such as float32[768,3072]."""
    described = (f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(tree))
    return dict(zip(leaf_names(tree), described, strict=True))


def misfits(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """The arrays in which two descriptions of a tree differ, a line for each."""
    return [
        f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]


def write_manifest(
    folder: Path, *, leaves: dict[str, str], fingerprint: dict[str, Any], loss: float | None
) -> None:
    """Reads every file in `folder` back, flushes it to the disk, and writes the manifest whole or not at all.

    Args:
      folder: a checkpoint nobody writes to any more.
      leaves: what `describe_leaves` says of the saved tree.
      fingerprint: what identifies the run, as JSON values.
      loss: validation loss.
    """
    files = {name: [file.stat().st_size, _sha256(file, flush=True)] for name, file in _files(folder)}
    contents = asdict(Manifest(leaves, fingerprint, loss, files))
    partial = folder / _PARTIAL
    with partial.open("w") as out:
        json.dump({"sha256": _digest(contents), "contents": contents}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, folder / NAME)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
      ManifestError: it is missing or altered.
    """
    try:
        stored = json.loads((folder / NAME).read_bytes())
        contents, digest = stored["contents"], stored["sha256"]
    except FileNotFoundError:
        raise ManifestError(f"{NAME} is missing: the checkpoint was not finished") from None
    except (ValueError, KeyError, TypeError):
        raise ManifestError(f"{NAME} is not readable") from None
    if digest != _digest(contents):
        raise ManifestError(f"{NAME} was altered")
    return Manifest(**contents)


def damages(folder: Path, manifest: Manifest) -> list[str]:
    """What of a checkpoint is not as it was written: nothing, or a line for every file."""
    present = dict(_files(folder))
    missing = [f"{name} is missing" for name in manifest.files if name not in present]

    def damage(name: str) -> str | None:
        size, digest = manifest.files[name]
        found = present[name].stat().st_size
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
        return None if _sha256(present[name]) == digest else f"{name} was altered: its SHA-256 differs"

    with ThreadPoolExecutor(max_workers=8) as readers:
        found = list(readers.map(damage, [name for name in manifest.files if name in present]))
    return missing + [line for line in found if line]


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in (NAME, _PARTIAL):
            yield name, file


def _sha256(file: Path, *, flush: bool = False) -> str:
    with file.open("rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(contents: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
