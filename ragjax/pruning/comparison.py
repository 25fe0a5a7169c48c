"""What each way of pruning costs: one model, pruned several ways, measured on one held-out text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ragjax.config import OneShot
from ragjax.data import open_corpus
from ragjax.errors import InputError
from ragjax.evaluation.perplexity import check_length, score
from ragjax.evaluation.windows import corpus_windows
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.json_file import read_object, write_object
from ragjax.model import Model
from ragjax.pruning.one_shot import plan, prune
from ragjax.report.pruning import COMPARISON


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
    progress: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Prunes a model in several ways, one after another, and measures each.

    Every row is in the folder's `comparison.json` as soon as it is there; the same comparison in the same
    folder goes on after the last of them.

    Args:
      model: the dense model, with its tokenizer.
      ways: how it is pruned.
      measure: the text that perplexity is measured on.
      folder: where to; holds nothing, or the same comparison.
      source: MODEL, as it was named.
      progress: told of each row.

    Returns:
      What the file holds.

    Raises:
      InputError: the folder holds something else, or as `ragjax.prune`, before anything is pruned.
    """
    for way in ways:
        plan(model, way)
    asked = {"model": source, **measure._asdict()}
    found = _begun(folder, asked)
    if "dense" not in found:
        found["dense"] = {"perplexity": _perplexity(model, measure)}
        _keep(folder, found)
    for way in ways:
        wanted = way_of(way)
        if any(row["way"] == wanted and row["asked"] == way.sparsity for row in found["rows"]):
            continue
        pruned = prune(model, way)
        row = {
            "way": wanted,
            "asked": way.sparsity,
            "sparsity": pruned.report.sparsity.sparsity_prunable,
            "perplexity": _perplexity(pruned.model, measure),
            "seconds": round(pruned.report.seconds, 1),
        }
        found["rows"].append(row)
        _keep(folder, found)
        progress(row)
    return found


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


def _perplexity(model: Model, measure: Measure) -> float:
    length = measure.sequence_length
    assert model.tokenizer is not None
    corpus = open_corpus(measure.data, None, model.tokenizer)
    check_length(model, length)
    windows = corpus_windows(corpus, sequence_length=length, stride=length, max_tokens=measure.max_tokens)
    return score(model, corpus.tokens, windows, batch_size=8).perplexity
