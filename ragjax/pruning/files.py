"""What the verbs about pruning leave behind for a person: JSON, and a page made of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ragjax.config import OneShot
from ragjax.duration import duration, time_left
from ragjax.errors import InputError
from ragjax.evaluation.speed import forward_speed
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.bitmask import compressed_bytes
from ragjax.interchange.folder import load
from ragjax.interchange.formats import check_request
from ragjax.interchange.json_file import write_object
from ragjax.interchange.size import stored_bytes
from ragjax.model import Model
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.pruning.comparison import Measure, compare, way_of
from ragjax.pruning.one_shot import Pruned, default_length
from ragjax.pruning.sensitivity import check_levels, sensitivity
from ragjax.pruning.unfinished import announced, end_if_asked, remove
from ragjax.report import write_report
from ragjax.report.pruning import PRUNING, SENSITIVITY, packed_picture
from ragjax.sparsity.mask_pictures import mask_picture
from ragjax.sparsity.sensitivity import budget
from ragjax.training.interrupts import Interrupts

_SPEED_LENGTH = 512
"""Tokens of the sequence by which speed is measured, at most."""


def keep_pruning(dense: Model, pruned: Pruned, out: Path) -> dict[str, Any]:
    """Writes pruning.json and report.html beside a pruned model, which it measures against the dense one.

    Both are there before the speed is measured, and again with it: one that fails takes nothing along.

    Args:
      dense: the model before.
      pruned: the model after, and how it came about.
      out: its folder.

    Returns:
      What pruning.json holds.
    """
    report, length = pruned.report, min(_SPEED_LENGTH, dense.config.positions)
    names = list(report.asked)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {
        "sparsity_prunable": report.sparsity.sparsity_prunable,
        "sparsity_total": report.sparsity.sparsity_total,
        "stored_bytes": stored_bytes(out),
        "bitmask_bytes": compressed_bytes(pruned.model.params, pruned.model.config),
    }
    found = {
        "method": report.config.method,
        "calibration": report.config.calibration,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        "before": before,
        "after": after,
        "blocks": [layer.error for layer in report.layers],
        "matrices": {
            name: {
                "sparsity": [float(layer.matrices[name].sparsity) for layer in report.layers],
                "error": [_plain(layer.matrices[name].error) for layer in report.layers],
            }
            for name in names
        },
        "pictures": _pictures(pruned.model, names),
    }
    _written(found, out)
    speeds = forward_speed({"before": dense, "after": pruned.model}, batch=1, length=length, rounds=3)
    for measured, name in ((before, "before"), (after, "after")):
        measured["tokens_per_second"] = speeds[name].tokens_per_second
    _written(found, out)
    return found


def _written(found: dict[str, Any], out: Path) -> None:
    write_object(out / PRUNING, found)
    write_report(out)


def _plain(value: Any) -> float | None:
    return None if value is None else float(value)


def _pictures(model: Model, names: Sequence[str]) -> list[dict[str, Any]]:
    """The masks of the layer in the middle."""
    layer = model.config.layers // 2
    flat = flatten_dict(model.params, sep="/")
    made = []
    for name in names:
        kept = np.asarray(flat[name][layer]) != 0
        seen = mask_picture(kept)
        made.append(
            {
                "name": name,
                "layer": layer,
                "inputs": kept.shape[0],
                "outputs": kept.shape[1],
                "overview": packed_picture(np.rint(255 * (1 - seen.overview))),
                "corner": packed_picture(255 * ~seen.corner),
            }
        )
    return made


def compare_to_folder(
    source: str, out: Path, ways: Sequence[OneShot], *, data: str, max_tokens: int, to_stderr: bool = False
) -> dict[str, Any]:
    """Prunes MODEL in several ways, and writes what each costs: comparison.json and report.html.

    The same command goes on where it stopped.

    Args:
      source: MODEL.
      out: the folder to write.
      ways: how it is pruned.
      data: source URI of the text perplexity is measured on.
      max_tokens: tokens of it that are scored at most.
      to_stderr: print progress there, not to standard output.

    Raises:
      InputError: as `ragjax.pruning.comparison.compare`.
    """
    keep_compiled_programs()
    model = load(source, floats=True)
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    length = ways[0].sequence_length or default_length(model)
    took: dict[str, float] = {}
    last = time.monotonic()

    def say(row: dict[str, Any], left: Sequence[OneShot]) -> None:
        nonlocal last
        now = time.monotonic()
        took[row["way"]], last = now - last, now
        line = (
            f"{row['way']:<20} {row['sparsity']:6.1%}  perplexity {row['perplexity']:,.2f}  "
            f"{duration(row['seconds'])}"
        )
        if left:
            # A way takes as long at any sparsity; one that was not seen yet as long as the others do.
            usual = float(np.mean(list(took.values())))
            seconds = sum(took.get(way_of(way), usual) for way in left)
            line += f"  {len(left)} to go, about {duration(seconds)}"
        console.print(line, markup=False)

    number = "one way" if len(ways) == 1 else f"{len(ways)} ways"
    console.print(f"[bold]compare[/bold] {escape(source)}: {number} of pruning, measured on {escape(data)}")
    found = compare(model, ways, Measure(data, length, max_tokens), out, source=source, progress=say)
    write_report(out)
    return found


def print_comparison(found: dict[str, Any], out: Path) -> None:
    """Prints perplexity by way and sparsity, and where the page is."""
    levels = sorted({row["asked"] for row in found["rows"]})
    table = Table(box=None, pad_edge=False)
    table.add_column("perplexity")
    for level in levels:
        table.add_column(f"{level:.1%}", justify="right")
    table.add_row(f"dense {found['dense']['perplexity']:,.2f}", *([""] * len(levels)))
    for way in dict.fromkeys(row["way"] for row in found["rows"]):
        by_level = {row["asked"]: row["perplexity"] for row in found["rows"] if row["way"] == way}
        table.add_row(way, *(f"{by_level[level]:,.2f}" if level in by_level else "" for level in levels))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"report {out / 'report.html'}", markup=False)


def sensitivity_to_folder(
    source: str,
    out: Path,
    config: OneShot,
    *,
    sparsities: tuple[float, ...],
    sequences: int,
    to_stderr: bool = False,
) -> dict[str, Any]:
    """Measures how each matrix of MODEL bears pruning: sensitivity.json, report.html, and budget.json, which
    says where most can go; the pattern n_of_m leaves no choice, and has none.

    Layers that are done are kept beside it in `OUT.unfinished` until it is there; the same call goes on from
    them.

    Args:
      source: MODEL.
      out: the folder to write; must not exist.
      config: the method; its `sparsity` is that of budget.json, which `ragjax prune --budget table` reads.
      sparsities: shares of a matrix's weights that are removed.
      sequences: sequences of held-out text.
      to_stderr: print progress there, not to standard output.

    Raises:
      InputError: as `ragjax.pruning.sensitivity.sensitivity`, or `out` exists.
      Interrupted: SIGINT or SIGTERM; the layers that are done are kept.
    """
    check_request(out, "hf", None)
    assert config.sparsity is not None
    check_levels(config, sparsities)
    if config.pattern != "n_of_m" and config.sparsity > sparsities[-1]:
        raise InputError(
            f"sparsity {config.sparsity:g} of the budget must not exceed the highest of sparsities, "
            f"{sparsities[-1]:g}."
        )
    keep_compiled_programs()
    model = load(source, floats=True)
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    count = model.config.layers
    console.print(f"[bold]sensitivity[/bold] {escape(source)}: {config.method}, {count} layers")

    unfinished, interrupts, times = announced(out, console), Interrupts(), [time.monotonic()]

    def say(layer: int) -> None:
        times.append(time.monotonic())
        left = count - layer - 1
        told = f"  {time_left(np.diff(times).tolist(), left)}" if left else ""
        console.print(f"layer {layer + 1}/{count}{told}")
        end_if_asked(interrupts, layer + 1, count, unfinished)

    curves = sensitivity(
        model, config, sparsities=sparsities, sequences=sequences, unfinished=unfinished, within=interrupts,
        progress=say,
    )  # fmt: skip
    found: dict[str, Any] = {
        "method": config.method,
        "sparsities": list(curves.sparsities),
        "dense": curves.dense,
        "loss": {name: values.tolist() for name, values in curves.loss.items()},
    }
    # n of m removes as much everywhere: there is nothing to share out.
    if config.pattern != "n_of_m":
        flat = flatten_dict(model.params, sep="/")
        sizes = {name: int(np.prod(flat[name].shape[1:])) for name in curves.loss}
        table = {name: values.tolist() for name, values in budget(curves, sizes, config.sparsity).items()}
        found["budget"] = {"sparsity": config.sparsity, "table": table}
    with atomic_folder(out, overwrite=False) as partial:
        write_object(partial / SENSITIVITY, found)
        if "budget" in found:
            write_object(partial / "budget.json", found["budget"]["table"])
    remove(unfinished)
    write_report(out)
    return found


def print_sensitivity(found: dict[str, Any], source: str, out: Path) -> None:
    """Prints the mean growth of the loss by matrix and sparsity, and what to do next."""
    table = Table(box=None, pad_edge=False)
    table.add_column(f"loss above {found['dense']:.3f}")
    for level in found["sparsities"]:
        table.add_column(f"{level:.0%}", justify="right")
    for name, losses in found["loss"].items():
        means = np.mean(losses, axis=0) - found["dense"]
        table.add_row(name, *(f"{value:+.4f}" for value in means))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"report {out / 'report.html'}", markup=False)
    if "budget" in found:
        console.print(
            f"prune with it: ragjax prune {quote(source)} NEW --method {found['method']} "
            f"--sparsity {found['budget']['sparsity']:g} --budget table "
            f"--table {quote(str(out / 'budget.json'))}",
            markup=False,
        )
