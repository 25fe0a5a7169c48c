"""Figures as a table on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ragjax.evaluation.figures import Figures

_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("perplexity per token", lambda f: f"{f.perplexity:,.2f}"),
    ("perplexity per word", lambda f: f"{f.word_perplexity:,.2f}"),
    ("bits per byte", lambda f: f"{f.bits_per_byte:.4f}"),
    ("tokens scored", lambda f: f"{f.tokens:,}"),
    ("layers", lambda f: f"{f.layers}"),
    ("parameters", lambda f: f"{f.parameters:,}"),
    ("  not zero", lambda f: f"{f.nonzero_parameters:,}"),
    ("sparsity, prunable weights", lambda f: f"{f.sparsity_prunable:.2%}"),
    ("sparsity, all", lambda f: f"{f.sparsity_total:.2%}"),
    ("weights on disk", lambda f: f"{f.stored_bytes / 1e6:,.1f} MB"),
    ("forward tokens per second", lambda f: f"{f.tokens_per_second:,.0f}"),
)


def before_and_after() -> Table:
    """A table of what a model was and is, still without rows: name, before, after, ratio."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "before", "after", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    return table


def add_stored(table: Table, stored: tuple[int, int]) -> None:
    """Adds bytes of weights on disk to a table of `before_and_after`."""
    old, new = stored
    table.add_row("weights on disk, MB", f"{old / 1e6:,.1f}", f"{new / 1e6:,.1f}", f"{new / old:.3f}")


def print_figures(figures: Mapping[str, Figures], console: Console | None = None) -> None:
    """Prints the figures of models side by side.

    Args:
      figures: by name.
      console: where to; none: standard output.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in figures:
        table.add_column(escape(name), justify="right")
    for title, cell in _ROWS:
        table.add_row(title, *map(cell, figures.values()))
    if any(f.speed_vs_teacher is not None for f in figures.values()):
        ratios = [f.speed_vs_teacher for f in figures.values()]
        table.add_row("  against the teacher", *("" if r is None else f"{r:.2f} times" for r in ratios))
    (console or Console(highlight=False)).print(table)
