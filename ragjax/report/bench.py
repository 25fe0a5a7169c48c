"""The figures that `ragjax bench` kept in a run folder, without those of models that have changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragjax.report.numbers import finite
from ragjax.seen_files import SeenFile, is_as_seen

FILE, FORMAT = "bench.json", 1
_FIGURES = (
    "first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "bytes_per_token",
    "share_of_bandwidth", "prefill_ratio", "decode_ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Benched:
    """A model that was measured."""

    name: str
    """Its role in the run with a capital; of another model the name of its folder."""
    role: str | None
    engine: str
    weights: str
    """Type of its matrices in memory."""
    stored_bytes: float | None
    perplexity: float | None
    """On the run's held-out text."""
    why: str | None
    """Why there is no perplexity."""
    zeros: float | None
    """Share of its prunable weights, where the run counted them."""
    batch: dict[int, dict[str, float]]
    """Figures of speed, by prompts at once."""


@dataclass(frozen=True)
class Bench:
    """A comparison in turns."""

    machine: str
    date: str
    bandwidth: float | None
    """Bytes of memory read in a second."""
    options: dict[str, Any]
    first: str
    """What the others' ratios are to."""
    models: tuple[Benched, ...]
    left_out: tuple[str, ...]
    """A sentence for each that is not shown."""


def read_bench(
    folder: Path, models: Mapping[str, Mapping[str, float]], unreadable: list[str]
) -> Bench | None:
    """Reads `bench.json`, and looks whether the files of its models hold what they held.

    Args:
      folder: of the run.
      models: figures of the run's models, by role.
      unreadable: gets the name of the file, if it cannot be read.

    Returns:
      None where there is no such file, or it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return _bench(folder, value, models)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        unreadable.append(path.name)
        return None


def _bench(folder: Path, value: dict[str, Any], models: Mapping[str, Mapping[str, float]]) -> Bench:
    if value["format"] != FORMAT:
        raise ValueError(f"format {FORMAT} was expected")
    alike = finite(value["student_perplexity"]) == models["student"].get("perplexity")
    shown, left_out, names = [], [], _names(value["models"])
    for entry, name in zip(value["models"], names, strict=True):
        role = entry["role"]
        if role is not None and not role.isidentifier():
            raise ValueError(f"{role!r} is no model of a run")
        if role is not None and role not in models:
            left_out.append(f"{name}: the run has no figures of it any more.")
            continue
        if not _is_there(folder, entry):
            left_out.append(f"{name}: its files are not those that were measured.")
            continue
        own = models.get(role, {})
        perplexity, why = finite(entry["perplexity"]), entry["why"]
        if role is not None:
            perplexity, why = own.get("perplexity"), None
        elif not alike:
            perplexity, why = None, "the run was measured on another text since"
        shown.append(
            Benched(
                name, role, str(entry["engine"]), str(entry["weights"]), finite(entry["stored_bytes"]),
                perplexity, None if why is None else str(why), own.get("sparsity_prunable"), _by_batch(entry),
            )
        )  # fmt: skip
    return Bench(
        machine=str(value["machine"]),
        date=str(value["date"]),
        bandwidth=finite(value["bandwidth_bytes_per_second"]),
        options=dict(value["options"]),
        first=names[0],
        models=tuple(shown),
        left_out=tuple(dict.fromkeys(left_out)),
    )


def _names(entries: list[dict[str, Any]]) -> list[str]:
    """What each is called on the page: no two alike but for one model that was measured twice."""
    given = [(Path(str(entry["model"])), Path(str(entry["folder"]))) for entry in entries]
    folders = [place if model.name in ("", "..") else model for model, place in given]
    last = [folder.name for folder in folders]
    return [
        entry["role"].capitalize() if entry["role"] is not None
        else folder.name if last.count(folder.name) == 1
        else str(folder)
        for entry, folder in zip(entries, folders, strict=True)
    ]  # fmt: skip


def _is_there(folder: Path, entry: dict[str, Any]) -> bool:
    """Whether a model's files are as they were; one from elsewhere, also a teacher, may be gone, and was what
    it was."""
    role, elsewhere = entry["role"], Path(entry["folder"])
    own = None if role is None else folder / role
    place = own if own is not None and own.is_dir() else elsewhere
    from_elsewhere = own is None or (role == "teacher" and elsewhere != own.resolve())
    if from_elsewhere and not place.is_dir():
        return True
    return all(
        is_as_seen(place, SeenFile(name=Path(seen["name"]).name, bytes=seen["bytes"], sha256=seen["sha256"]))
        for seen in entry["files"]
    )


def _by_batch(entry: dict[str, Any]) -> dict[int, dict[str, float]]:
    found = {
        int(batch): {key: number for key in _FIGURES if (number := finite(told[key])) is not None}
        for batch, told in entry["batch"].items()
    }
    return {batch: told for batch, told in found.items() if len(told) == len(_FIGURES)}
