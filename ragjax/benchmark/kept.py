"""What was measured of a run's models, kept in its folder, where its report finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ragjax.benchmark.quality import HeldOut, held_out, perplexity_on, why_not
from ragjax.benchmark.report import Report
from ragjax.config import Compress
from ragjax.config_file import from_values
from ragjax.errors import InputError
from ragjax.interchange.onnx import is_onnx
from ragjax.interchange.onnx.write import DATA, GRAPH
from ragjax.interchange.resolve import resolve
from ragjax.interchange.size import weight_files
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel
from ragjax.report.bench import FILE, FORMAT
from ragjax.report.read import MODELS
from ragjax.run_folder import RunFolder
from ragjax.seen_files import look


def run_of(names: Sequence[str]) -> RunFolder | None:
    """The finished run of the first model that lies in the folder of one; none: no model does.

    Args:
      names: MODELs, or folders with an ONNX graph.

    Raises:
      InputError: a model is not there.
    """
    for name in names:
        place = _place(name)
        if place.name in MODELS and (place.parent / "summary.json").is_file():
            return RunFolder(place.parent)
    return None


def keep(
    run: RunFolder,
    report: Report,
    models: Sequence[Model | OnnxModel],
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes the figures of a comparison as `bench.json` into a run folder, in place of any before.

    Besides the figures it says which of the run's models each one is, and what its files held, so that a
    report can tell whether they are still of the same model. Of a model that the run did not measure it says
    the perplexity on the run's held-out text, if it is one that compares.

    Args:
      run: the run folder, with `summary.json`; at least one of the models lies in it.
      report: as from `bench`.
      models: those of the report, in its order.
      progress: called with a line before perplexity is measured.

    Returns:
      The file.
    """
    summary, text = run.read_json("summary.json") or {}, None
    places = [_place(measured.model) for measured in report.models]
    own = next(
        model
        for model, place in zip(models, places, strict=True)
        if place.parent == run.path and place.name in MODELS
    )
    told: list[dict[str, Any]] = []
    for measured, model, place in zip(report.models, models, places, strict=True):
        role = _role(measured.model, place, run)
        entry = {**asdict(measured), "role": role, **_stored(place), "perplexity": None, "why": None}
        if role is None:
            try:
                text = text or _text_of(run, summary, own)
                entry["why"] = why_not(model, text)
            except InputError as error:
                entry["why"] = str(error)
            if entry["why"] is None and text is not None:
                progress(f"perplexity of {measured.model} on the run's held-out text")
                entry["perplexity"] = perplexity_on(model, text)
        told.append(entry)
    student = summary.get("student", {}).get("perplexity")
    run.write_json(FILE, {"format": FORMAT, **asdict(report), "models": told, "student_perplexity": student})
    return run.path / FILE


def _text_of(run: RunFolder, summary: dict[str, Any], own: Model | OnnxModel) -> HeldOut:
    # As it was when the figures were measured: the folder's config may have changed since.
    config = from_values(summary["identity"]["config"], run.path / "summary.json")
    assert isinstance(config, Compress)
    return held_out(config, summary, own)


def _place(name: str) -> Path:
    """The folder or file of a model."""
    found = Path(name).expanduser() if is_onnx(name) else resolve(name)
    return found.resolve()


def _role(name: str, place: Path, run: RunFolder) -> str | None:
    """Which of a run's models it is."""
    if place.parent == run.path and place.name in MODELS:
        return place.name
    teacher = (run.read_json("config.json") or {}).get("teacher", {}).get("model")
    if teacher is None:
        return None
    is_there = Path(teacher).expanduser().exists()
    return "teacher" if (place == _place(teacher) if is_there else name == teacher) else None


def _stored(place: Path) -> dict[str, Any]:
    files = [place / GRAPH, place / DATA] if is_onnx(place) else weight_files(place)
    seen = look(files)
    folder = place if place.is_dir() else place.parent
    return {"folder": str(folder), "files": seen, "stored_bytes": sum(file["bytes"] for file in seen)}
