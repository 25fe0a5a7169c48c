"""The verb `quantize`: reads MODEL, writes OUT, and tells what it saved and what it cost."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ragjax.config import Mesh, Quantize
from ragjax.data.uri import parse_uri
from ragjax.duration import duration
from ragjax.errors import InputError
from ragjax.evaluation import evaluate
from ragjax.evaluation.readable import check_readable
from ragjax.evaluation.table import add_stored, before_and_after
from ragjax.interchange.folder import load, save
from ragjax.interchange.formats import check_request
from ragjax.interchange.size import stored_bytes
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.parallel.working_mesh import working_mesh
from ragjax.pruning.unfinished import announced, end_if_asked, remove
from ragjax.quantizing.quantize import QuantizeReport, quantize, scheme_of
from ragjax.training.interrupts import Interrupts


class Comparison(NamedTuple):
    """A model before and after."""

    report: QuantizeReport
    stored: tuple[int, int]
    """Bytes of the files of weights, of MODEL and of what was written."""
    perplexity: tuple[float, float] | None
    """On the text that was given."""


def quantize_to_folder(
    source: str,
    out: str | Path,
    config: Quantize,
    *,
    format: str = "quantized",
    devices: Mesh,
    data: str | None = None,
    max_tokens: int | None = None,
    to_stderr: bool = False,
) -> Comparison:
    """Quantizes MODEL and writes it, whole or not at all.

    Methods that go block by block keep what is done beside it in `OUT.unfinished` until it is there; the same
    call goes on from that.

    Args:
      source: MODEL.
      out: the folder to write; must not exist.
      config: bits, groups, method.
      format: "quantized", or "dequantized": the floats that the integers stand for.
      devices: how those that share the work are laid out.
      data: source URI of a text to measure perplexity on; none: it is not measured.
      max_tokens: tokens that are scored at most; none: all.
      to_stderr: print progress there, not to standard output.

    Raises:
      InputError: as `quantize`; or `out` exists, or the model is not there.
      Interrupted: SIGINT or SIGTERM; the blocks that are done are kept.
    """
    check_request(out, "hf", None)
    scheme_of(config)
    for uri in filter(None, (config.calibration, data)):
        parse_uri(uri)
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"--max-tokens must be at least 1, found {max_tokens}.")
    keep_compiled_programs()
    mesh = working_mesh(devices)
    model = load(source, mesh=mesh)
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    console.print(f"[bold]quantize[/bold] {escape(source)}: {config.scheme}, {config.method}")
    if data is not None:
        # What cannot be measured is told before the work, not after it.
        check_readable(data, model)
    # To the nearest it takes seconds, and nothing is kept.
    unfinished = None if config.method == "rtn" else announced(out, console)
    interrupts = Interrupts()

    def after_block(done: int, of: int) -> None:
        assert unfinished is not None
        end_if_asked(interrupts, done, of, unfinished)

    made = quantize(
        model, config, mesh=mesh, unfinished=unfinished, within=interrupts,
        progress=lambda line: console.print(f"  {line}", markup=False), after_block=after_block,
    )  # fmt: skip
    save(made.model if format == "quantized" else made.model.in_floats(), out)
    if unfinished is not None:
        remove(unfinished)
    perplexities = None
    if data is not None:
        console.print(f"saved {out}; now perplexity is measured", markup=False)
        before, after = (
            evaluate(each, data, max_tokens=max_tokens, mesh=mesh).perplexity for each in (model, made.model)
        )
        perplexities = before, after
    return Comparison(made.report, (stored_bytes(source), stored_bytes(out)), perplexities)


def summary(compared: Comparison, out: str | Path) -> dict[str, Any]:
    """A comparison as JSON values.

    Args:
      compared: the model before and after.
      out: the folder that was written.
    """
    report = compared.report
    return {
        "out": str(out),
        "scheme": report.config.scheme,
        "method": report.config.method,
        "bits_per_weight": report.bits,
        "stored_bytes": list(compared.stored),
        "perplexity": None if compared.perplexity is None else list(compared.perplexity),
        "error_of": report.error_of,
        "errors": {name: list(layers) for name, layers in report.errors.items()},
        "seconds": round(report.seconds, 2),
    }


def print_comparison(compared: Comparison, source: str, out: str | Path) -> None:
    """Prints what was saved, what it cost, and what to do next.

    Args:
      compared: the model before and after.
      source: MODEL.
      out: the folder that was written.
    """
    console, report = Console(highlight=False, soft_wrap=True), compared.report
    table = before_and_after()
    add_stored(table, compared.stored)
    table.add_row("bits of a quantized weight", "", f"{report.bits:.2f}", "")
    if compared.perplexity is not None:
        before, after = compared.perplexity
        table.add_row("perplexity", f"{before:,.2f}", f"{after:,.2f}", f"{after / before:.3f}")
    console.print(table)
    errors = Table(box=None, pad_edge=False)
    for heading in (f"relative error of {report.error_of}", "mean", "worst layer"):
        errors.add_column(heading, justify="left" if "error" in heading else "right")
    for name, layers in report.errors.items():
        worst = max(range(len(layers)), key=layers.__getitem__)
        errors.add_row(name, f"{fmean(layers):.4f}", f"{layers[worst]:.4f} in {worst}")
    console.print(errors)
    where = quote(str(out))
    console.print(
        f"saved {out} after {duration(report.seconds)}. What it costs: ragjax eval {where}\n"
        f"To run it: ragjax generate {where} --prompt 'Once upon a time'\n"
        f"For llama.cpp: ragjax export {where} OUT.gguf --format gguf --dtype "
        f"{'q4_0' if report.scheme.bits == 4 else 'q8_0'}",
        markup=False,
    )
