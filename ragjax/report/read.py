"""The files of a run folder, read once, with what is damaged left out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragjax.errors import InputError, listing
from ragjax.report.bench import Bench, read_bench
from ragjax.report.numbers import finite

MODELS = ("teacher", "student", "control", "scratch")
"""The models of a run, in the order in which they are shown."""

Figures = dict[str, float]
"""Finite figures of one model, by the keys of `ragjax eval`."""


@dataclass(frozen=True)
class Zeros:
    """How many weights of one matrix are zero."""

    matrix: str
    """Name of the parameter."""
    layer: int | None
    """Its layer; none: it belongs to no layer."""
    size: int
    zeros: int


@dataclass(frozen=True)
class Run:
    """What a run folder says."""

    folder: Path
    summary: dict[str, Any]
    models: dict[str, Figures]
    """Figures of the models that were measured, in the order of `MODELS`."""
    rounds: dict[str, list[float]]
    """Tokens per second of each model in every round of the speed measurement."""
    metrics: dict[str, list[dict[str, Any]]]
    """Lines of `metrics.jsonl` by stage, in the order of their steps, each step once."""
    config: dict[str, Any]
    masks: list[Zeros]
    samples: list[dict[str, str]]
    bench: Bench | None
    """How fast models write, where it was measured."""
    unreadable: tuple[str, ...]
    """Files that are there and could not be read in full."""


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    Args:
      folder: holds `summary.json`, and where they were written `metrics.jsonl`, `config.json`,
        `masks.json`, `samples.json` and `bench.json`.

    Raises:
      InputError: `summary.json` is missing, or does not describe a teacher and a student.
    """
    summary = _summary(folder)
    unreadable: list[str] = []
    config = _optional(folder / "config.json", dict, unreadable)
    masks = _optional(folder / "masks.json", dict, unreadable)
    samples = _optional(folder / "samples.json", list, unreadable)
    metrics = _metrics(folder / "metrics.jsonl", unreadable)
    shown = [name for name in MODELS if isinstance(summary.get(name), dict)]
    models = {name: _figures(summary[name]) for name in shown}
    bench = read_bench(folder, models, unreadable)
    return Run(
        folder=folder,
        summary=summary,
        models=models,
        rounds={name: _numbers(summary[name].get("tokens_per_second_rounds")) for name in shown},
        metrics=metrics,
        config=config,
        masks=_zeros(masks.get("student")),
        samples=_samples(samples),
        bench=bench,
        unreadable=tuple(unreadable),
    )


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        raise InputError(
            f"a report needs the summary of a finished run, found none at {path}: "
            f"name a run folder, or finish the run with `ragjax compress`"
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must hold JSON, found: {error}; run `ragjax compress` again") from None
    if not isinstance(summary, dict):
        raise InputError(f"{path} must hold a JSON object, found a {type(summary).__name__}")
    problems = [
        f"{name}: expected an object of figures, found {summary.get(name)!r:.60}"
        for name in ("teacher", "student")
        if not isinstance(summary.get(name), dict)
    ]
    if problems:
        raise InputError(f"{path} lacks what a report compares:\n{listing(problems)}")
    return summary


def _optional(path: Path, kind: type, unreadable: list[str]) -> Any:
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        value = None
    if not isinstance(value, kind):
        unreadable.append(path.name)
        return kind()
    return value


def _metrics(path: Path, unreadable: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Lines by stage; of a step that was run twice, after a restart, the last word counts."""
    if not path.is_file():
        return {}
    found: dict[str, dict[tuple, dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            # A crash may tear the last line; a torn line elsewhere is worth a word.
            if line.strip() and number < len(lines):
                unreadable.append(f"{path.name} line {number}")
            continue
        if not isinstance(entry, dict) or entry.get("stage") not in MODELS:
            continue
        step = finite(entry.get("step"))
        if step is not None:
            found.setdefault(entry["stage"], {})[step, "validation_loss" in entry] = entry
    return {stage: [found[stage][key] for key in sorted(found[stage])] for stage in MODELS if stage in found}


def _figures(given: dict[str, Any]) -> Figures:
    return {key: number for key, value in given.items() if (number := finite(value)) is not None}


def _numbers(given: object) -> list[float]:
    values = given if isinstance(given, list) else []
    return [number for value in values if (number := finite(value)) is not None]


def _zeros(given: object) -> list[Zeros]:
    found = []
    for entry in given if isinstance(given, list) else []:
        if not isinstance(entry, dict):
            continue
        size, zeros, layer = (finite(entry.get(key)) for key in ("size", "zeros", "layer"))
        if size and zeros is not None:
            where = None if layer is None else int(layer)
            found.append(Zeros(str(entry.get("name", "?")), where, int(size), int(zeros)))
    return found


def _samples(given: list[Any]) -> list[dict[str, str]]:
    rows = [entry for entry in given if isinstance(entry, dict)]
    rows = [{key: row[key] for key in ("prompt", *MODELS) if isinstance(row.get(key), str)} for row in rows]
    return [row for row in rows if set(row) - {"prompt"}]
