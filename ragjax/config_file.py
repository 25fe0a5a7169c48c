"""Configs as files: Python files that bind `config`, and the resolved JSON of a run folder."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import runpy
import types
import typing
from pathlib import Path
from typing import Any

from ragjax import config as schema
from ragjax.errors import InputError, listing

Run = schema.Compress | schema.Pretrain
"""What a config file may hold."""

KINDS: dict[str, type] = {"Compress": schema.Compress, "Pretrain": schema.Pretrain}


def read_config(path: Path) -> tuple[Run, str]:
    """Reads a config file.

    Args:
      path: a Python file that binds `config`, or the `config.json` of a run folder. A Python file is
        run, like any script.

    Returns:
      The config and what the file says of itself (its docstring).

    Raises:
      InputError: there is no such file, or it holds no config.
    """
    if not path.is_file():
        here = sorted(str(p) for p in Path("configs").glob("*.py"))
        known = f" Configs at hand: {', '.join(here)}." if here else ""
        raise InputError(f"A config file was expected, {path} is not a file.{known}")
    if path.suffix == ".json":
        return _from_json(path), ""
    if path.suffix != ".py":
        raise InputError(f"A config file ends in .py or .json, found {path.name}.")
    try:
        bound = runpy.run_path(str(path))
    except TypeError as error:
        unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or not hasattr(schema, unknown[1]):
            raise
        names = [f.name for f in dataclasses.fields(getattr(schema, unknown[1]))]
        near = difflib.get_close_matches(unknown[2], names, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
        raise InputError(f"{path}: {unknown[1]} has no field {unknown[2]}; {meant}") from None
    found = bound.get("config")
    if not isinstance(found, Run):
        raise InputError(
            f"{path} must bind `config` to a ragjax.config.Compress or Pretrain, "
            f"found {'nothing' if found is None else type(found).__name__}."
        )
    return found, (bound.get("__doc__") or "").strip()


def _from_json(path: Path) -> Run:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    return from_values(values, path)


def from_values(values: Any, where: Path) -> Run:
    """The config that `ragjax.config.to_dict` made plain JSON values of.

    Args:
      values: an object with the config's type under `kind`.
      where: the file they are from, for messages.

    Raises:
      InputError: they are no config, or not of known fields.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(
            f"{where} must be a JSON object with a `kind` of {' or '.join(KINDS)}, found {kind!r}."
        )
    return from_dict(KINDS[kind], {name: value for name, value in values.items() if name != "kind"})


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Builds the dataclass `cls` from plain JSON values.

    Raises:
      InputError: names every unknown field with the nearest one there is, and every value of a wrong type.
    """
    found: list[str] = []
    built = _build(cls, values, "", found)
    if found:
        raise InputError(f"{cls.__name__}: cannot be read:\n{listing(found)}")
    return built


def _build(cls: type, values: dict[str, Any], prefix: str, found: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    arguments = {}
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            meant = f"; did you mean {prefix}{near[0]}?" if near else f"; there are {', '.join(names)}"
            found.append(f"{prefix}{name} is not a field{meant}")
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, dict):
                arguments[name] = _build(hints[name], value, f"{prefix}{name}.", found)
            else:
                found.append(f"{prefix}{name} must be an object, found {value!r}")
        else:
            value = tuple(value) if isinstance(value, list) else value
            if _fits(value, hints[name]):
                arguments[name] = value
            else:
                found.append(f"{prefix}{name} must be {_said(hints[name])}, found {value!r}")
    return None if found else cls(**arguments)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str, bool):
        return type(value) is hint
    return value is None


def _said(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs, as JSON values, differ: dotted name to (old, new)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found[f"{prefix}{name}"] = (before, after)
    return found
