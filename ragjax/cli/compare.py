"""The verb `prune` with --compare: several ways in one go."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated, cast, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ragjax.cli.arguments import ModelName
from ragjax.config import OneShot, OneShotBudget, OneShotMethod, Pattern
from ragjax.errors import InputError


@dataclass(frozen=True)
class _CompareCommand:
    """Prune a model in several ways, and write what each costs: comparison.json and report.html.

    The same command goes on where it stopped.
    """

    model: ModelName
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write."""
    compare: str
    """Methods, with commas between: magnitude,wanda,sparsegpt."""
    sparsity: str = "0.3,0.5,0.7"
    """Sparsities, with commas between; for the pattern n_of_m it is what n and m say."""
    data: str = "builtin:python"
    """Source URI of the text perplexity is measured on."""
    max_tokens: int = 16_384
    """Tokens of it that are scored at most."""
    pattern: Pattern | None = None
    """As without --compare."""
    n: int = 2
    """As without --compare."""
    m: int = 4
    """As without --compare."""
    block: tuple[int, int] = (8, 128)
    """As without --compare."""
    budget: OneShotBudget = "uniform"
    """As without --compare."""
    calibration: str = "builtin:python"
    """As without --compare."""
    samples: int = 128
    """As without --compare."""
    sequence_length: int | None = None
    """As without --compare."""
    batch_size: int = 8
    """As without --compare."""
    dampening: float = 0.01
    """As without --compare."""
    seed: int = 0
    """As without --compare."""
    table: str | None = None
    """As without --compare."""
    prunable: tuple[str, ...] = ("layers/*/kernel",)
    """As without --compare."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def run(given: list[str]) -> None:
    """Does `ragjax prune --compare`, given the words that follow it."""
    # In `--compare --help` the methods are not said yet.
    words = ["--help"] if {"-h", "--help"} & set(given) else given
    command = tyro.cli(_CompareCommand, args=words, prog="ragjax prune --compare")
    shared = {
        name: getattr(command, name)
        for name in ("pattern", "n", "m", "block", "budget", "calibration", "samples", "sequence_length",
                     "batch_size", "dampening", "seed", "table", "prunable")
    }  # fmt: skip
    levels: list[float | None] = [None] if command.pattern == "n_of_m" else []
    problems = []
    for text in [] if levels else command.sparsity.split(","):
        try:
            levels.append(float(text))
        except ValueError:
            problems.append(f"sparsity must be numbers with commas between, found {text!r}")
    methods = command.compare.split(",")
    problems += [
        f"there is no method {name!r}: {', '.join(get_args(OneShotMethod))}"
        for name in methods
        if name not in get_args(OneShotMethod)
    ]
    if problems:
        raise InputError(f"--compare: {'; '.join(problems)}.")
    ways = [
        OneShot(method=cast(OneShotMethod, method), sparsity=level, **shared)
        for level in levels
        for method in methods
    ]
    from ragjax.pruning.files import compare_to_folder, print_comparison
    from ragjax.sparsity.calibrated.in_turn import spare_memory

    spare_memory()
    found = compare_to_folder(
        command.model, command.out, ways,
        data=command.data, max_tokens=command.max_tokens, to_stderr=command.json,
    )  # fmt: skip
    if command.json:
        print(dumps(found))
    else:
        print_comparison(found, command.out)
