"""How fast models write, as values and as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ragjax.benchmark.figures import Figures
from ragjax.config import Bench


@dataclass(frozen=True)
class Measured:
    """A model and its figures."""

    model: str
    engine: Literal["jax", "onnx"]
    weights: str
    """Type in which its matrices lie in memory."""
    parameters: int
    batch: dict[int, Figures]
    """By the number of prompts at once."""


@dataclass(frozen=True)
class Report:
    """What was measured, on what, and how."""

    machine: str
    bandwidth_bytes_per_second: float
    """At which the machine reads its memory; the median over rounds."""
    options: Bench
    models: tuple[Measured, ...]
    """The first is what the others are compared with."""
    date: str
    """When, in UTC, as ISO 8601 has it."""
    versions: dict[str, str]
    """Of Python and the packages that were measured."""


def print_report(report: Report) -> None:
    """Prints a table for each batch, what was measured and how, and what to do next.

    Args:
      report: as from `bench`.
    """
    console, options = Console(highlight=False, soft_wrap=True), report.options
    for batch in options.batch:
        table = Table(box=None, pad_edge=False)
        table.add_column(f"batch {batch}", overflow="fold")
        for heading in (
            "first\ntoken ms", "prefill\ntokens/s", "times", "decode\ntokens/s", "times",
            "weights\nMB/token", "of band-\nwidth",
        ):  # fmt: skip
            table.add_column(heading, justify="right", no_wrap=True)
        for one in report.models:
            told = one.batch[batch]
            table.add_row(
                escape(f"{one.model} (onnx)" if one.engine == "onnx" else one.model),
                f"{told.first_token_seconds * 1e3:,.1f}",
                f"{told.prefill_tokens_per_second:,.0f}", f"{told.prefill_ratio:.2f}",
                f"{told.decode_tokens_per_second:,.1f}", f"{told.decode_ratio:.2f}",
                f"{told.bytes_per_token / 1e6:,.2f}", f"{told.share_of_bandwidth:.0%}",
            )  # fmt: skip
        console.print(table)
        console.print()
    console.print(_what(report.models))
    console.print()
    first = report.models[0]
    console.print(
        f"{options.prompt_tokens} random tokens a prompt, {options.new_tokens} new ones, greedy; medians of "
        f"{options.rounds} rounds, times: of {first.model}, paired within a round.\n"
        f"{report.machine}; memory is read at {report.bandwidth_bytes_per_second / 1e9:.1f} GB/s.",
        markup=False,
    )
    console.print(_next(report), markup=False)


def _what(models: Sequence[Measured]) -> Table:
    """What each model is."""
    table = Table(box=None, pad_edge=False)
    table.add_column("measured", overflow="fold")
    for heading in ("run by", "weights in memory"):
        table.add_column(heading)
    table.add_column("parameters", justify="right")
    for one in models:
        table.add_row(escape(one.model), one.engine, one.weights, f"{one.parameters:,}")
    return table


def _next(report: Report) -> str:
    first, *others = report.models
    if not others:
        return (
            f"To compare: ragjax bench {quote(first.model)} --against OTHER, such as what `ragjax quantize` "
            "or `ragjax export --format onnx` wrote of it."
        )
    fastest = max(report.models, key=lambda one: one.batch[report.options.batch[0]].decode_tokens_per_second)
    engine = f" --engine {fastest.engine}" if fastest.engine == "onnx" else ""
    lines = [
        f"To run the fastest: ragjax generate {quote(fastest.model)}{engine} --prompt 'Once upon a time'"
    ]
    if fastest.engine == "jax" and fastest.model != first.model:
        lines.append(f"What it costs in quality: ragjax eval {quote(fastest.model)}")
    return "\n".join(lines)
