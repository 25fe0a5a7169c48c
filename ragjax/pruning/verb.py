"""The verb `prune`: reads MODEL, tells how it goes, writes OUT, and says what came of it."""

from __future__ import annotations

import resource
import sys
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ragjax.config import Mesh, OneShot
from ragjax.duration import duration, time_left
from ragjax.errors import listing
from ragjax.interchange.folder import load, save
from ragjax.interchange.formats import check_request
from ragjax.interchange.json_file import read_object
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.parallel.working_mesh import working_mesh
from ragjax.pruning.files import keep_pruning
from ragjax.pruning.one_shot import PruneReport, default_length, prune
from ragjax.pruning.unfinished import announced, end_if_asked, remove
from ragjax.report.pruning import PRUNING
from ragjax.sparsity.calibrated.methods import MatrixFigures
from ragjax.sparsity.calibrated.stream import LayerFigures
from ragjax.training.interrupts import Interrupts


def prune_to_folder(
    source: str, out: str | Path, config: OneShot, *, devices: Mesh, to_stderr: bool = False
) -> PruneReport:
    """Prunes MODEL and writes it as a Hugging Face folder, whole or not at all, then a page about it.

    Blocks that are done are kept beside it in `OUT.unfinished` until it is there; the same call goes on from
    them.

    Args:
      source: MODEL.
      out: the folder to write; must not exist.
      config: what to remove.
      devices: how those that share the work are laid out.
      to_stderr: print progress there, not to standard output.

    Raises:
      InputError: as `prune`; or `out` exists, or the model is not there.
      Interrupted: SIGINT or SIGTERM; the blocks that are done are kept.
    """
    check_request(out, "hf", None)
    keep_compiled_programs()
    mesh = working_mesh(devices)
    with _on_host() if mesh is None else nullcontext():
        model = load(source, mesh=mesh, floats=True)
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    length = config.sequence_length or default_length(model)
    console.print(
        f"[bold]prune[/bold] {escape(source)}: {config.method}, {config.sparsity:.0%}, "
        f"{config.samples} sequences of {length} tokens of {escape(config.calibration)}"
    )
    unfinished, layers = announced(out, console), model.config.layers
    lines, interrupts = _Lines(console, layers, config.samples * length), Interrupts()

    def told(figures: LayerFigures) -> None:
        lines.say(figures)
        end_if_asked(interrupts, figures.layer + 1, layers, unfinished)

    pruned = prune(model, config, mesh=mesh, unfinished=unfinished, within=interrupts, progress=told)
    save(pruned.model, out)
    remove(unfinished)
    console.print(f"saved {out}; now its speed is measured", markup=False)
    keep_pruning(model, pruned, Path(out))
    return pruned.report


class _Lines:
    """Progress, a line a layer."""

    def __init__(self, console: Console, layers: int, tokens: int):
        self.console, self.layers, self.tokens = console, layers, tokens
        self.seconds: list[float] = []

    def say(self, figures: LayerFigures) -> None:
        self.seconds.append(figures.seconds)
        done, width = figures.layer + 1, len(str(self.layers))
        speed = self.tokens / figures.seconds
        line = f"layer {done:>{width}}/{self.layers}  error {figures.error:.4f}  {speed:,.0f} tokens/s"
        if done < self.layers:
            line += f"  {time_left(self.seconds, self.layers - done)}"
        self.console.print(line, markup=False)


def summary(report: PruneReport, out: str | Path) -> dict[str, Any]:
    """A report as JSON values.

    Args:
      report: of a pruning.
      out: the folder that was written.
    """
    return {
        "out": str(out),
        "method": report.config.method,
        "sparsity": report.config.sparsity,
        "sparsity_prunable": report.sparsity.sparsity_prunable,
        "sparsity_total": report.sparsity.sparsity_total,
        **_measured(out),
        "calibration_tokens": report.tokens,
        "seconds": round(report.seconds, 2),
        "peak_bytes": _peak_bytes(),
        "layers": [
            {
                "error": layer.error,
                "seconds": round(layer.seconds, 3),
                "matrices": {
                    name: {"asked": float(report.asked[name][layer.layer]), **_plain(figures)}
                    for name, figures in layer.matrices.items()
                },
            }
            for layer in report.layers
        ],
    }


def print_report(report: PruneReport, out: str | Path) -> None:
    """Prints what was asked for and reached, what it took, what is amiss, and what to do next.

    Args:
      report: of a pruning.
      out: the folder that was written.
    """
    console, told = Console(highlight=False, soft_wrap=True), report.sparsity
    measured = _measured(out)
    table = Table(box=None, pad_edge=False, show_header=False)
    for title, cell in (
        ("sparsity asked for", f"{report.config.sparsity:.2%}"),
        ("  reached, prunable weights", f"{told.sparsity_prunable:.2%}"),
        ("  reached, all", f"{told.sparsity_total:.2%}"),
        ("weights on disk", f"{measured['stored_bytes'] / 1e6:,.1f} MB"),
        (
            "  without its zeros",
            f"{measured['bitmask_bytes'] / 1e6:,.1f} MB (ragjax export --format bitmask)",
        ),
        ("forward speed", f"{measured['speed_vs_dense']:.2f} times the dense model's"),
        ("time", duration(report.seconds)),
        ("peak memory", f"{_peak_bytes() / 1e6:,.0f} MB"),
    ):
        table.add_row(title, cell)
    console.print(table)
    page = f"report {Path(out) / 'report.html'}"
    remarks = [*_remarks(report), page, f"What it costs: ragjax eval {quote(str(out))}"]
    console.print("\n".join(remarks), markup=False)


def _measured(out: str | Path) -> dict[str, float]:
    """The figures of pruning.json that a script may want."""
    found = read_object(Path(out) / PRUNING)
    after = found["after"]
    return {
        "stored_bytes": after["stored_bytes"],
        "bitmask_bytes": after["bitmask_bytes"],
        "speed_vs_dense": after["tokens_per_second"] / found["before"]["tokens_per_second"],
    }


def _remarks(report: PruneReport) -> list[str]:
    """What a person should know of grams that had to be helped."""
    asked, raised, unsolved, dead = report.config.dampening, [], [], 0
    for layer in report.layers:
        for name, figures in layer.matrices.items():
            dead += int(figures.dead_inputs > 0)
            used = float(figures.dampening)
            where = f"{name} of layer {layer.layer}"
            if not np.isfinite(used):
                unsolved.append(where)
            elif used > asked * 1.001:
                raised.append(f"{where}: {used:g}")
    told = [f"{dead} matrices have inputs that were 0 at every token"] if dead else []
    if raised:
        told.append(f"near-singular grams were dampened by more than {asked:g}:\n{listing(raised)}")
    if unsolved:
        told.append(
            "grams that no dampening made usable, whose matrices lost their lowest Wanda scores and were not "
            f"repaired:\n{listing(unsolved)}"
        )
    return told


def _plain(figures: MatrixFigures) -> dict[str, float | int | None]:
    """As JSON values, among which is no infinity: a gram without a factor has no dampening."""
    found = figures._asdict()
    return {
        name: None if value is None or not np.isfinite(value) else np.asarray(value).item()
        for name, value in found.items()
    }


def _peak_bytes() -> int:
    """The most memory this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _on_host() -> Any:
    """Where arrays are made in the host's memory, if JAX has a device there."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()
