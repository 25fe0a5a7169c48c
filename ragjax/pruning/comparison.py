"""What each way of pruning costs: one model, pruned several ways, measured on one held-out text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ragjax.config import OneShot
from ragjax.data import Corpus, open_corpus, training_split
from ragjax.errors import InputError
from ragjax.evaluation.perplexity import check_length, score
from ragjax.evaluation.windows import corpus_windows
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.json_file import read_object, write_object
from ragjax.model import Model
from ragjax.pruning.one_shot import plan, prune
from ragjax.report.pruning import COMPARISON

_SHARED = ("calibration", "samples", "seed", "dampening", "prunable", "table")
"""Fields of the ways that are compared which a row does not tell: all of them have to agree."""


class Measure(NamedTuple):
    """The held-out text, and how much of it."""

    data: str
    """Source URI."""
    sequence_length: int
    """Tokens the model sees at once."""
    max_tokens: int
    """Tokens that are scored at most."""


def compare(
    model: Model,
    ways: Sequence[OneShot],
    measure: Measure,
    folder: Path,
    *,
    source: str,
    progress: Callable[[dict[str, Any], Sequence[OneShot]], None] = lambda row, left: None,
) -> dict[str, Any]:
    """Prunes a model in several ways, one after another, and measures each.

    Every row is in the folder's `comparison.json` as soon as it is there; the same comparison in the same
    folder goes on after the last of them.

    Args:
      model: the dense model, with its tokenizer.
      ways: how it is pruned, by the same calibration text.
      measure: the text that perplexity is measured on.
      folder: where to; holds nothing, or the same comparison.
      source: MODEL, as it was named.
      progress: told of each row, and of the ways that are left.

    Returns:
      What the file holds.

    Raises:
      InputError: the folder holds something else, the text is that of the calibration, or as `ragjax.prune`,
        before anything is pruned.
    """
    asked = {"model": source, **measure._asdict(), **_shared(model, ways)}
    if measure.data == asked.get("calibration") and training_split(measure.data, hold_out=False) is None:
        raise InputError(
            f"{measure.data} is the calibration text, on which every method looks better than it is: measure "
            "on another with --data."
        )
    assert model.tokenizer is not None
    text = open_corpus(measure.data, None, model.tokenizer)
    found = _begun(folder, asked)
    if "dense" not in found:
        found["dense"] = {"perplexity": _perplexity(model, text, measure)}
        _keep(folder, found)
    there = {(row["way"], row["asked"]) for row in found["rows"]}
    left = [way for way in ways if (way_of(way), way.sparsity) not in there]
    for number, way in enumerate(left, 1):
        pruned = prune(model, way)
        row = {
            "way": way_of(way),
            "asked": way.sparsity,
            "sparsity": pruned.report.sparsity.sparsity_prunable,
            "perplexity": _perplexity(pruned.model, text, measure),
            "seconds": round(pruned.report.seconds, 1),
        }
        found["rows"].append(row)
        _keep(folder, found)
        progress(row, left[number:])
    return found


def _shared(model: Model, ways: Sequence[OneShot]) -> dict[str, Any]:
    """What all ways have in common, as JSON values; refuses ways that do not fit the model."""
    shared: dict[str, Any] = {}
    for way in ways:
        length = plan(model, way).calibration.tokens.shape[-1]
        own = {name: getattr(way, name) for name in _SHARED} | {"calibration_length": length}
        own["prunable"] = list(way.prunable)
        if shared not in ({}, own):
            raise InputError(f"Ways of pruning are compared by one text: found {shared} and {own}.")
        shared = own
    return shared


def way_of(config: OneShot) -> str:
    """A method, with its pattern and budget where they are not the usual ones: 'wanda 2:4'."""
    parts: list[str] = [config.method]
    if config.pattern == "n_of_m":
        parts.append(f"{config.n}:{config.m}")
    elif config.pattern == "block":
        parts.append(f"{config.block[0]}x{config.block[1]} blocks")
    elif config.pattern is not None:
        parts.append(f"by {config.pattern}")
    if config.budget != "uniform":
        parts.append(f"with {config.budget}")
    return " ".join(parts)


def _begun(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    file = folder / COMPARISON
    if file.is_file():
        found = read_object(file)
        different = [
            f"{name} was {found.get(name)!r}, is {value!r}"
            for name, value in asked.items()
            if found.get(name) != value
        ]
        if different:
            raise InputError(
                f"{folder} holds another comparison: {'; '.join(different)}. Choose another name."
            )
        return found
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already: choose another name.")
    with atomic_folder(folder, overwrite=False) as partial:
        write_object(partial / COMPARISON, {**asked, "rows": []})
    return {**asked, "rows": []}


def _keep(folder: Path, found: dict[str, Any]) -> None:
    unfinished = folder / f".{COMPARISON}.unfinished"
    write_object(unfinished, found)
    unfinished.replace(folder / COMPARISON)


def _perplexity(model: Model, text: Corpus, measure: Measure) -> float:
    length = measure.sequence_length
    check_length(model, length)
    windows = corpus_windows(text, sequence_length=length, stride=length, max_tokens=measure.max_tokens)
    return score(model, text.tokens, windows, batch_size=8).perplexity
