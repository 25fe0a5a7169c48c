"""Text in local files: plain files, a document each, and JSON lines, a text or a pair a line."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ragjax.data.records import Record, record, record_problems
from ragjax.data.uri import Source
from ragjax.errors import InputError, listing

_MOST_PROBLEMS = 100


def text_records(source: Source) -> Iterator[Record]:
    """The files that match, in the order of their names, a document each.

    Raises:
      InputError: no file matches; files are empty or not UTF-8 (all are listed).
    """
    problems: list[str] = []
    for path in matching_files(source):
        text = _decoded(path.read_bytes(), str(path), problems)
        if text is not None and not text.strip():
            problems.append(f"{path}: holds no text")
        elif text is not None:
            yield (text,)
        _stop(source, problems, most=_MOST_PROBLEMS)
    _stop(source, problems)


def jsonl_records(source: Source) -> Iterator[Record]:
    """The named fields of every line that is not empty, in the order of files and lines.

    Raises:
      InputError: no file matches; files are empty; lines are not UTF-8, no JSON object, or their fields
        make no text or pair (all are listed).
    """
    problems: list[str] = []
    for path in matching_files(source):
        lines, offset = 0, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                if line.strip():
                    lines += 1
                    decoded = _decoded(line, where, problems, offset=offset)
                    found = None if decoded is None else _record(source, decoded, where, problems)
                    if found is not None:
                        yield found
                    _stop(source, problems, most=_MOST_PROBLEMS)
                offset += len(line)
        if not lines:
            problems.append(f"{path}: holds no lines")
    _stop(source, problems)


def files_digest(source: Source) -> str:
    """The sha256 of the bytes of all files that match, each with its length."""
    return hash_files(matching_files(source))


def hash_files(paths: Iterable[str | Path]) -> str:
    """The sha256 over the sha256 of each file."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def matching_files(source: Source) -> list[Path]:
    """The files that match the pattern of `source`, sorted.

    Raises:
      InputError: no file matches.
    """
    pattern = str(Path(source.location).expanduser())
    # A file whose name holds brackets is meant before a pattern is.
    found = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
    paths = sorted(path for path in map(Path, found) if path.is_file())
    if not paths:
        hint = f"; it is a folder: write {source.scheme}:{pattern}/**/*" if Path(pattern).is_dir() else ""
        raise InputError(f"{source.uri}: no file matches {str(Path(pattern).absolute())!r}{hint}")
    return paths


def _decoded(content: bytes, where: str, problems: list[str], *, offset: int = 0) -> str | None:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = offset + error.start + (len(content) - len(error.object))
        problems.append(f"{where}: not UTF-8, found byte 0x{error.object[error.start]:02x} at offset {at}")
        return None


def _record(source: Source, line: str, where: str, problems: list[str]) -> Record | None:
    try:
        values = json.loads(line)
    except ValueError as error:
        problems.append(f"{where}: not JSON: {error}")
        return None
    if not isinstance(values, dict):
        problems.append(f"{where}: expected a JSON object, found {type(values).__name__}")
        return None
    lacking = [name for name in source.fields if name not in values]
    problems += [
        f"{where}: no field {name!r}, found {', '.join(map(repr, values)) or 'none'}; name one after '#'"
        for name in lacking
    ]
    wrong = [] if lacking else record_problems(source, values)
    problems += [f"{where}: {problem}" for problem in wrong]
    return None if lacking or wrong else record(source, values)


def _stop(source: Source, problems: list[str], *, most: int = 1) -> None:
    if len(problems) >= most:
        raise InputError(
            f"{source.uri}: cannot be read as text:\n{listing(problems)}\n"
            "Mend these files, or leave them out of the pattern."
        )
