"""A folder, or a file, that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from ragjax.errors import InputError

_MODEL_FILES = (
    "config.json", "generation_config.json", "ragjax.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "chat_template.jinja", "README.md", ".gitattributes",
)  # fmt: skip


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty folder to write to, which becomes `path` when the block ends without an error.

    It is a sibling of `path` until then, so that the change of name is one step of the file system.
    Files are flushed to the disk first. After an error nothing is left of it. An empty folder counts
    as absent.

    Args:
      path: where the folder is to appear; missing parents are made.
      overwrite: replace a model's folder; a folder that holds anything else is never replaced.

    Raises:
      InputError: `path` exists and may not be replaced, or cannot be written.
    """
    path = Path(path).expanduser().resolve()
    _check_replaceable(path, overwrite)
    partial = _begin(path, Path.mkdir)
    try:
        yield partial
        _flush(partial)
        _check_replaceable(path, overwrite)
        _move(partial, path)
        _flush_entry(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty file to write to, which becomes `path` when the block ends without an error.

    As `atomic_folder` otherwise.

    Args:
      path: where the file is to appear; missing parents are made.
      overwrite: replace a file.

    Raises:
      InputError: `path` exists and may not be replaced, or cannot be written.
    """
    path = Path(path).expanduser().resolve()
    _check_file_replaceable(path, overwrite)
    partial = _begin(path, Path.touch)
    try:
        yield partial
        _flush_entry(partial)
        _check_file_replaceable(path, overwrite)
        os.replace(partial, path)
        _flush_entry(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_creatable(path: str | Path) -> None:
    """Refuses a place where nothing can be written, before the work for it is done; leaves nothing there.

    Args:
      path: where a file or a folder is to appear.

    Raises:
      InputError: nothing can be written in the folder that it, or the first missing parent of it, lies in.
    """
    path = Path(path).expanduser().resolve()
    try:
        parent = next(folder for folder in path.parents if folder.exists())
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written: {error.strerror or error}. Choose another.")


def _begin(path: Path, make: Callable[[Path], None]) -> Path:
    """What is written to before it becomes `path`."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make(partial)
    except OSError as error:
        raise _unwritable(path, error) from None
    return partial


def _check_file_replaceable(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError(f"{path}: a file was expected, this is a folder: choose another name.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another name, or say that it may be overwritten.")


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: a folder was expected, this is a file: choose another name.")
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return
    if not overwrite:
        raise InputError(f"{path} exists already: choose another name, or say that it may be overwritten.")
    strangers = [n for n in names if not any(fnmatch(n, known) for known in _MODEL_FILES)]
    if "config.json" not in names or strangers:
        found = ", ".join((strangers or names)[:5])
        raise InputError(
            f"{path} may not be overwritten: only a folder that holds a model and nothing else is replaced, "
            f"found {found}. Remove it yourself, or choose another name."
        )


def _move(partial: Path, path: Path) -> None:
    if not path.exists():
        os.rename(partial, path)
        return
    old = partial.with_suffix(".old")
    os.rename(path, old)
    try:
        os.rename(partial, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _flush_entry(Path(root, name))
        _flush_entry(Path(root))


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
