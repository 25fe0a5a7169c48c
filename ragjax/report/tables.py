"""The tables of the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ragjax.report.curves import stage_totals
from ragjax.report.heat import short
from ragjax.report.markup import Markup, tag
from ragjax.report.read import Run, Zeros
from ragjax.report.verdict import EVEN_QUALITY, EVEN_SPEED, round_ratios
from ragjax.report.words import (
    NONE,
    change,
    compact,
    decimal,
    duration,
    grouped,
    in_bytes,
    percent,
    precise,
    signed_percent,
)

Row = tuple[str, str, str, Callable[[float | None], str]]
"""Key of the figure, its name, which way is better ("lower", "higher" or ""), and how it is written."""
CLEAR = {"Quality": EVEN_QUALITY, "Size": 0.005, "Speed": EVEN_SPEED}
"""Relative margin by which a model must beat the next to be called the best."""

COMPARED: tuple[tuple[str, tuple[Row, ...]], ...] = (
    (
        "Quality",
        (
            ("perplexity", "Perplexity per token", "lower", decimal),
            ("word_perplexity", "Perplexity per word", "lower", decimal),
            ("bits_per_byte", "Bits per byte", "lower", precise),
        ),
    ),
    (
        "Size",
        (
            ("stored_bytes", "Stored bytes", "lower", in_bytes),
            ("parameters", "Parameters", "lower", compact),
            ("nonzero_parameters", "Parameters not zero", "lower", compact),
            ("layers", "Layers", "", grouped),
        ),
    ),
    (
        "Sparsity",
        (
            ("sparsity_prunable", "Zeros among prunable weights", "", percent),
            ("sparsity_total", "Zeros among all weights", "", percent),
        ),
    ),
    ("Speed", (("tokens_per_second", "Tokens read per second", "higher", compact),)),
)


def comparison(run: Run) -> Markup:
    """All models side by side, with the change against the teacher and the best of each row."""
    names = list(run.models)
    groups = []
    for group, rows in COMPARED:
        shown = [
            _compared(run, row, CLEAR.get(group, 0.0))
            for row in rows
            if any(row[0] in run.models[n] for n in names)
        ]
        if group == "Speed" and shown:
            shown += _rounds(run)
        if shown:
            head = tag("tr", tag("th", group, colspan=len(names) + 1, scope="rowgroup"), class_="group")
            groups.append(tag("tbody", head, *shown))
    heads = [tag("th", tag("span", name.capitalize(), class_=f"key {name}"), scope="col") for name in names]
    return scrolling(
        tag(
            "table",
            tag("caption", tag("span", "Figures of each model, and the change against the teacher")),
            tag("thead", tag("tr", tag("th", "Figure", scope="col"), *heads)),
            *groups,
            class_="comparison",
        ),
        "Comparison of the models",
    )


def _compared(run: Run, row: Row, margin: float) -> Markup:
    key, title, better, words = row
    values = {name: figures.get(key) for name, figures in run.models.items()}
    best = _best(values, better, margin)
    cells = []
    for name, value in values.items():
        delta = None
        if name != "teacher" and better and (against := change(value, values["teacher"])) is not None:
            delta = tag("small", signed_percent(against))
        cells.append(
            tag(
                "td",
                tag("data", words(value), value="" if value is None else f"{value:.10g}"),
                tag("em", "best") if name == best else None,
                delta,
                class_="best" if name == best else None,
            )
        )
    hint = tag("small", f"{better} is better") if better else None
    return tag("tr", tag("th", title, hint, scope="row"), *cells)


def _best(values: dict[str, float | None], better: str, margin: float) -> str | None:
    """The model that is clearly ahead of all others, if there is one."""
    known = sorted((value, name) for name, value in values.items() if value is not None)
    if not better or len(known) < 2:
        return None
    (first, name), (second, _) = known[:2] if better == "lower" else known[:-3:-1]
    return name if abs(first - second) > margin * abs(second) else None


def _rounds(run: Run) -> list[Markup]:
    """Speed against the teacher in each round, as a range."""
    cells = []
    for name in run.models:
        ratios = round_ratios(run, name)
        cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios and name != "teacher" else NONE)
    if all(cell == NONE for cell in cells):
        return []
    count = len(run.rounds["teacher"])
    title = tag("th", "Speed against the teacher", tag("small", f"range over {count} rounds"), scope="row")
    return [tag("tr", title, *(tag("td", cell) for cell in cells))]


def heat_map(zeros: list[Zeros]) -> Markup:
    """Share of zeros in each matrix (rows) of each layer (columns)."""
    matrices = list(dict.fromkeys(entry.matrix for entry in zeros))
    layers = sorted({entry.layer for entry in zeros if entry.layer is not None})
    columns: list[int | None] = [*layers, *([None] if any(e.layer is None for e in zeros) else [])]
    by_place: dict[tuple[str, int | None], list[Zeros]] = {}
    for entry in zeros:
        by_place.setdefault((entry.matrix, entry.layer), []).append(entry)

    def row(title: str, groups: list[list[Zeros]], total: list[Zeros], kind: str | None = None) -> Markup:
        return tag(
            "tr",
            tag("th", title, scope="row"),
            *(_heat_cell(group) for group in groups),
            _heat_cell(total, "total"),
            class_=kind,
        )

    rows = [
        row(short(m), [by_place.get((m, c), []) for c in columns], [e for e in zeros if e.matrix == m])
        for m in matrices
    ]
    rows.append(row("All", [[e for e in zeros if e.layer == c] for c in columns], zeros, "total"))
    heads = [tag("th", "no layer" if c is None else c, scope="col") for c in columns]
    return scrolling(
        tag(
            "table",
            tag("caption", tag("span", "Share of zeros in percent, by matrix and layer of the student")),
            tag("thead", tag("tr", tag("th", "Layer", scope="col"), *heads, tag("th", "All", scope="col"))),
            tag("tbody", *rows),
            class_="heat",
        ),
        "Zeros by matrix and layer",
    )


def share(zeros: list[Zeros]) -> float:
    """Zeros over weights of all entries together."""
    return sum(entry.zeros for entry in zeros) / sum(entry.size for entry in zeros)


def _heat_cell(zeros: list[Zeros], kind: str = "") -> Markup:
    if not zeros:
        return tag("td", NONE, class_=kind or None)
    part = share(zeros)
    written = percent(part).split("\u00a0")[0]
    return tag("td", written, style=f"--share:{part:.3f}", class_=f"filled {kind}".strip())


def stages(run: Run) -> Markup:
    """How long each stage of training was, and how fast."""
    columns = (
        ("Steps", "steps", grouped),
        ("Tokens", "tokens", compact),
        ("Time", "seconds", duration),
        ("Tokens per second", "tokens_per_second", compact),
        ("Steps skipped", "skipped", grouped),
    )
    rows = []
    for stage, entries in run.metrics.items():
        totals = stage_totals(entries)
        name = tag("th", tag("span", stage.capitalize(), class_=f"key {stage}"), scope="row")
        rows.append(tag("tr", name, *(tag("td", words(totals[key])) for _, key, words in columns)))
    heads = [tag("th", title, scope="col") for title, _, _ in columns]
    return scrolling(
        tag(
            "table",
            tag("caption", tag("span", "A step is skipped where its gradient is not finite")),
            tag("thead", tag("tr", tag("th", "Stage", scope="col"), *heads)),
            tag("tbody", *rows),
        ),
        "Training stages",
    )


def settings(config: dict[str, Any]) -> Markup:
    """Every field of the config, in groups."""
    plain = [(key, value) for key, value in config.items() if not isinstance(value, dict)]
    groups = [("run", plain)] if plain else []
    groups += [(key, _flat(value)) for key, value in config.items() if isinstance(value, dict)]
    bodies = []
    for title, fields in groups:
        head = tag("tr", tag("th", title, colspan=2, scope="rowgroup"), class_="group")
        rows = (tag("tr", tag("th", key, scope="row"), tag("td", _setting(value))) for key, value in fields)
        bodies.append(tag("tbody", head, *rows))
    return tag("table", tag("caption", "Resolved config", class_="unseen"), *bodies, class_="settings")


def _flat(config: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((f"{before}{key}", value))
    return found


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list) and not value:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def scrolling(table: Markup, name: str) -> Markup:
    """A table that scrolls by itself where the page is too narrow, also by keyboard."""
    return tag("div", table, class_="scroll", role="region", aria_label=name, tabindex=0)
