"""Python's own prose: the help topics and the longer docstrings of the standard library.

The sources are parsed, never imported. What comes out depends on the Python version alone, up to
modules that a distribution leaves out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ragjax.errors import InputError

_SHORTEST = 200
_RUN = 8
_LEFT_OUT = {
    *("__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload"),
    *("lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"),
}
_TOPICS = "pydoc_data/topics.py"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_prose() -> Iterator[str]:
    """The help topics, then the docstrings over 200 characters, in a fixed order.

    A text of which more than half, counted in runs of eight words, stood in earlier ones is left out.

    Raises:
      InputError: this Python comes without the sources of its standard library.
    """
    yield from _distinct()


def python_prose_digest() -> str:
    """The sha256 of the files that `python_prose` reads."""
    digest = hashlib.sha256()
    for path in (_library() / _TOPICS, *_modules()):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


@functools.cache
def _distinct() -> tuple[str, ...]:
    """The texts of which at least half is new: less would carry training text into validation."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for text in _texts():
        words = text.split()
        runs = {tuple(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))}
        if 2 * len(runs - seen) >= len(runs):
            kept.append(text)
        seen |= runs
    return tuple(kept)


def _texts() -> Iterator[str]:
    topics = ast.parse((_library() / _TOPICS).read_bytes())
    (table,) = (s.value for s in topics.body if isinstance(s, ast.Assign | ast.AnnAssign) and s.value)
    yield from ast.literal_eval(table).values()
    for path in _modules():
        yield from _docstrings(ast.parse(path.read_bytes()))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, _DOCUMENTED):
        text = ast.get_docstring(node)
        if text and len(text) > _SHORTEST:
            yield text
    # Statements alone: expressions hold no docstrings and are most of the tree.
    for block in ("body", "handlers", "orelse", "finalbody"):
        inner = getattr(node, block, None)
        for child in inner if isinstance(inner, list) else ():
            yield from _docstrings(child)


def _library() -> Path:
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / _TOPICS).is_file():
        raise InputError(
            f"builtin:python: expected the sources of Python's standard library in {folder}, found no "
            f"{_TOPICS} there. Name another source, such as text:FOLDER/*.txt"
        )
    return folder


def _modules() -> list[Path]:
    library = _library()
    found = []
    for folder, inner, names in os.walk(library):
        inner[:] = [name for name in inner if name not in _LEFT_OUT]
        found += [Path(folder, name).relative_to(library) for name in names if name.endswith(".py")]
    return [library / path for path in sorted(found, key=Path.as_posix)]
