"""The verb `shrink`: reads MODEL, tells how it goes, writes OUT, and says what came of it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape

from ragjax.config import Mesh, Shrink
from ragjax.data.uri import parse_uri
from ragjax.duration import duration, time_left
from ragjax.evaluation.figures import evaluate
from ragjax.evaluation.readable import check_readable
from ragjax.evaluation.speed import forward_speed
from ragjax.evaluation.table import add_stored, before_and_after
from ragjax.interchange.folder import load, save
from ragjax.interchange.formats import check_request
from ragjax.interchange.size import stored_bytes
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.parallel.rules import place
from ragjax.parallel.working_mesh import working_mesh
from ragjax.shrinking.shrunk import ShrinkReport, shrink
from ragjax.shrinking.written import as_written
from ragjax.sparsity.calibrated.calibration import over
from ragjax.sparsity.shrink import flops_per_token, parameter_count


class Comparison(NamedTuple):
    """A model before and after, as it was read and written."""

    report: ShrinkReport
    written: DecoderConfig
    """What stands in the folder: with heads of zeros where its config needs them."""
    stored: tuple[int, int]
    """Bytes of the weights' files."""
    latency: float
    """Seconds of the written model's forward pass over the first one's, measured in turns."""
    perplexity: tuple[float, float] | None
    """Per token, where a text was given."""


def shrink_to_folder(
    source: str,
    out: str | Path,
    config: Shrink,
    *,
    devices: Mesh,
    data: str | None = None,
    max_tokens: int | None = None,
    to_stderr: bool = False,
) -> Comparison:
    """Shrinks MODEL, writes it as a Hugging Face folder, whole or not at all, and measures both.

    Args:
      source: MODEL.
      out: the folder to write; must not exist.
      config: how small.
      devices: how those that share the work are laid out.
      data: source URI of a text to measure perplexity on; none: it is not measured.
      max_tokens: tokens that are scored at most; none: all.
      to_stderr: print progress there, not to standard output.

    Raises:
      InputError: as `shrink`; or `out` exists, or the model is not there.
    """
    check_request(out, "hf", None)
    for uri in filter(None, (config.calibration, data)):
        parse_uri(uri)
    keep_compiled_programs()
    mesh = working_mesh(devices)
    model = load(source, mesh=mesh, floats=True)
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    console.print(f"[bold]shrink[/bold] {escape(source)}: {parameter_count(model.config):,} parameters")
    if data is not None:
        # What cannot be measured is told before the work, not after it.
        check_readable(data, model)
    made = shrink(model, config, mesh=mesh, progress=_Lines(console).say)
    written = as_written(made.model)
    save(written, out)
    if mesh is not None:
        written = replace(written, params=place(written.params, mesh))
    with over(mesh):
        speed = forward_speed(
            {"before": model, "after": written}, batch=config.batch_size, length=made.report.length
        )
    perplexities = None
    if data is not None:
        before, after = (
            evaluate(each, data, max_tokens=max_tokens, speed=speed[name], mesh=mesh).perplexity
            for name, each in (("before", model), ("after", written))
        )
        perplexities = before, after
    return Comparison(
        made.report,
        written.config,
        (stored_bytes(source), stored_bytes(out)),
        1 / speed["after"].ratio,
        perplexities,
    )


class _Lines:
    """Progress, a line for each layer or candidate, with what is left of the stage."""

    def __init__(self, console: Console):
        self.console, self.stage, self.times = console, "", [time.monotonic()]

    def say(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if what != self.stage:
            self.stage, self.times = what, self.times[-1:]
        self.times.append(now)
        line = f"{what}, {done} of {of}" if of else what
        if done < of:
            line += f", {time_left(np.diff(self.times).tolist(), of - done)}"
        self.console.print(f"  {line}", markup=False)


def summary(compared: Comparison, out: str | Path) -> dict[str, Any]:
    """A comparison as JSON values.

    Args:
      compared: the model before and after.
      out: the folder that was written.
    """
    report = compared.report
    shapes = {"before": report.before, "after": report.after, "written": compared.written}
    return {
        "out": str(out),
        **{name: _figures(shape, report.length) for name, shape in shapes.items()},
        "kept_layers": list(report.layers),
        "length": report.length,
        "reached": report.reached,
        "stored_bytes": list(compared.stored),
        "latency_ratio": compared.latency,
        "perplexity": None if compared.perplexity is None else list(compared.perplexity),
        "output_errors": {
            name: {"cut": [before for before, _ in layers], "refit": [after for _, after in layers]}
            for name, layers in report.errors.items()
        },
        "seconds": round(report.seconds, 2),
    }


def _figures(shape: DecoderConfig, length: int) -> dict[str, float]:
    return {
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "kv_heads": shape.key_value_heads,
        "mlp_width": shape.mlp_width,
        "parameters": parameter_count(shape),
        "flops_per_token": flops_per_token(shape, length),
    }


_TITLES = {
    "layers": "layers",
    "width": "width",
    "heads": "heads",
    "kv_heads": "  of keys and values",
    "mlp_width": "neurons of a layer",
    "parameters": "parameters",
    "flops_per_token": "operations a token",
}


def print_comparison(compared: Comparison, source: str, out: str | Path) -> None:
    """Prints what there was and is, what the compensation bought, and what to do next.

    Args:
      compared: the model before and after.
      source: MODEL.
      out: the folder that was written.
    """
    console, report = Console(highlight=False, soft_wrap=True), compared.report
    table = before_and_after()
    before, after = (_figures(shape, report.length) for shape in (report.before, report.after))
    for name, title in _TITLES.items():
        old, new = before[name], after[name]
        table.add_row(title, f"{old:,.0f}", f"{new:,.0f}", f"{new / old:.3f}")
    add_stored(table, compared.stored)
    table.add_row(f"seconds to read {report.length} tokens", "", "", f"{compared.latency:.3f}")
    if compared.perplexity is not None:
        old, new = compared.perplexity
        table.add_row("perplexity", f"{old:,.2f}", f"{new:,.2f}", f"{new / old:.2f}")
    console.print(table)
    where = quote(str(out))
    console.print(
        "\n".join([
            *_remarks(compared),
            f"saved {out} after {duration(report.seconds)}. What it costs: ragjax eval {where}",
            f"To win quality back, train it further with {source} as its teacher: ragjax compress --help",
        ]),
        markup=False,
    )  # fmt: skip


def _remarks(compared: Comparison) -> list[str]:
    report, told = compared.report, []
    for (name, share) in (("params", report.config.params), ("flops", report.config.flops),
                          ("latency", report.config.latency)):  # fmt: skip
        if share is not None:
            again = f", measured again when written {compared.latency:.4f}" if name == "latency" else ""
            told.append(f"{name}: asked for {share:g}, reached {report.reached:.4f}{again}")
    for name, layers in report.errors.items():
        cut, refit = np.mean(layers, axis=0)
        told.append(f"error of {name}'s outputs, mean over layers: {cut:.3f} as cut, {refit:.3f} refit")
    after, written = report.after, compared.written
    if written != after:
        told.append(
            f"config.json cannot say {after.heads} heads of {after.head_width} in a width of {after.width}: "
            f"written as {written.heads} of {written.head_width}, filled up with zeros, which makes "
            f"{parameter_count(written):,} parameters of {parameter_count(after):,}"
        )
    return told
