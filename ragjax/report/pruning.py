"""The page about a pruning: where weights went, what it cost, and what other ways would cost."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragjax.errors import InputError
from ragjax.report import charts
from ragjax.report.document import document
from ragjax.report.heat import heat, short
from ragjax.report.markup import Markup, joined, tag
from ragjax.report.numbers import finite
from ragjax.report.picture import picture
from ragjax.report.sections import section
from ragjax.report.words import compact, decimal, duration, in_bytes, percent, precise, times

PRUNING, COMPARISON, SENSITIVITY = "pruning.json", "comparison.json", "sensitivity.json"
_HUES = 8
"""Lines that can be told apart."""


@dataclass(frozen=True)
class Pruning:
    """What a folder says; each part is empty where there is no such file."""

    folder: Path
    pruning: dict[str, Any]
    comparison: dict[str, Any]
    sensitivity: dict[str, Any]


def read_pruning(folder: Path) -> Pruning | None:
    """The files of a pruning; none where a folder holds none of them.

    Raises:
      InputError: one of them is no JSON object.
    """
    found = {name: _object(folder / name) for name in (PRUNING, COMPARISON, SENSITIVITY)}
    return Pruning(folder, *found.values()) if any(found.values()) else None


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must hold JSON, found: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, found a {type(value).__name__}.")
    return value


def page(found: Pruning) -> str:
    """The whole page as HTML."""
    name = found.folder.resolve().name
    return document(
        title=f"{_headline(found)} · {name}",
        name=name,
        top=_top(found),
        parts={
            "figures": ("Figures", _figures(found.pruning)),
            "compared": ("Methods", _compared(found.comparison)),
            "zeros": ("Zeros", _zeros(found.pruning)),
            "masks": ("Masks", _masks(found.pruning)),
            "errors": ("Errors", _errors(found.pruning)),
            "sensitivity": ("Sensitivity", _sensitivity(found.sensitivity)),
        },
        footer="Written by ragjax from the files of this folder. This page loads nothing from anywhere.",
    )


def _headline(found: Pruning) -> str:
    if found.pruning:
        share = percent(found.pruning.get("after", {}).get("sparsity_prunable"))
        return f"{share} of the prunable weights are gone, by {found.pruning.get('method', '?')}"
    return "What pruning costs" if found.comparison else "Where a model can be pruned"


def _top(found: Pruning) -> Markup:
    said = []
    if found.pruning:
        before, after = found.pruning.get("before", {}), found.pruning.get("after", {})
        if "perplexity" in before and "perplexity" in after:
            said.append(
                f"Perplexity went from {decimal(before['perplexity'])} to {decimal(after['perplexity'])}."
            )
        said.append(
            f"It took {duration(finite(found.pruning.get('seconds')))} with "
            f"{compact(finite(found.pruning.get('tokens')))} tokens of {found.pruning.get('calibration')}."
        )
    if found.comparison:
        said.append("Each method pruned the same model with the same calibration text.")
    if found.sensitivity:
        said.append("Each matrix of each layer was pruned alone, and the loss on held-out text measured.")
    return tag(
        "header",
        tag("p", "Pruning", class_="kicker"),
        tag("h1", _headline(found)),
        tag("p", joined(said, " "), class_="verdict"),
        class_="top",
    )


def _figures(pruning: dict[str, Any]) -> Markup | None:
    """The three figures that must not be mistaken for one another."""
    if not pruning:
        return None
    before, after = pruning.get("before", {}), pruning.get("after", {})
    speed = finite(after.get("tokens_per_second")), finite(before.get("tokens_per_second"))
    ratio = f"{times(speed[0] / speed[1])}×" if speed[0] and speed[1] else "not measured"
    smaller = finite(after.get("bitmask_bytes"))
    facts = (
        (
            "Logical sparsity",
            percent(after.get("sparsity_prunable")),
            f"Of the prunable weights; of all weights {percent(after.get('sparsity_total'))}.",
        ),
        (
            "Stored bytes",
            in_bytes(after.get("stored_bytes")),
            "A zero is stored like any other number."
            + (f" With a bit a weight and no zeros it would be {in_bytes(smaller)}." if smaller else ""),
        ),
        (
            "Measured speed",
            ratio,
            "Of the dense model, by a clock on this machine. Dense kernels multiply zeros too.",
        ),
    )
    boxes = (
        tag("div", tag("h4", title), tag("p", value, class_="big"), tag("p", why))
        for title, value, why in facts
    )
    three = tag("aside", tag("h3", "Three different numbers"), tag("div", *boxes), class_="three")
    return section("figures", "What was gained", None, three)


def _zeros(pruning: dict[str, Any]) -> Markup | None:
    rows = {name: each.get("sparsity", []) for name, each in pruning.get("matrices", {}).items()}
    if not rows:
        return None
    table = heat(rows, caption="Share of zeros in percent, by matrix and layer", words=percent)
    return section("zeros", "Where the zeros are", None, table)


def _errors(pruning: dict[str, Any]) -> Markup | None:
    rows = {
        name: each["error"]
        for name, each in pruning.get("matrices", {}).items()
        if any(finite(e) is not None for e in each.get("error") or [])
    }
    blocks = [(float(i), finite(e)) for i, e in enumerate(pruning.get("blocks") or [])]
    drawn = []
    if any(value is not None for _, value in blocks):
        drawn.append(
            charts.line_chart(
                [charts.Series("hue-1", "block", blocks)],
                title="Error of each block",
                x_title="layer →",
                y_title="relative to what the block adds",
                x_words=lambda v: f"{v:.0f}",
                y_words=precise,
            )
        )
    if rows:
        caption = "Relative error of each matrix's outputs on the calibration text"
        drawn.append(heat(rows, caption=caption, words=precise))
    lede = "How far outputs moved on the calibration text, against their size, each block alone."
    return section("errors", "What each layer lost", lede, *drawn) if drawn else None


def _masks(pruning: dict[str, Any]) -> Markup | None:
    drawn = []
    for one in pruning.get("pictures", []):
        far, near = (_unpacked(one[key]) for key in ("overview", "corner"))
        where = f"{short(one['name'])}, layer {one['layer']}"
        told = f"{where}: dark where weights are kept"
        drawn.append(
            tag(
                "figure",
                tag("figcaption", tag("b", where), f" {one['inputs']} × {one['outputs']}"),
                tag("div", picture(far, told=told), picture(near, told=f"{told}, the first of them")),
            )
        )
    if not drawn:
        return None
    lede = (
        "Inputs from top to bottom, outputs from left to right. On the left the whole matrix, darker where "
        "more is kept; on the right its first weights one by one, dark where kept."
    )
    return section("masks", "What the masks look like", lede, tag("div", *drawn, class_="masks"))


def packed_picture(rows: np.ndarray) -> dict[str, Any]:
    """Bytes [rows, columns] as JSON, for `pictures` of pruning.json."""
    data = base64.b64encode(rows.astype(np.uint8).tobytes()).decode()
    return {"rows": rows.shape[0], "columns": rows.shape[1], "bytes": data}


def _unpacked(one: dict[str, Any]) -> list[list[int]]:
    flat = base64.b64decode(one["bytes"])
    width = one["columns"]
    return [list(flat[start : start + width]) for start in range(0, len(flat), width)]


def _compared(comparison: dict[str, Any]) -> Markup | None:
    rows = [row for row in comparison.get("rows", []) if finite(row.get("perplexity")) is not None]
    if not rows:
        return None
    dense = finite(comparison.get("dense", {}).get("perplexity"))
    by_way: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], []).append(row)
    lines = []
    for number, (way, own) in enumerate(by_way.items()):
        points = sorted((row["sparsity"], row["perplexity"]) for row in own)
        start = [] if dense is None else [(0.0, dense)]
        lines.append(charts.Series(f"hue-{number % _HUES + 1}", way, start + points))
    chart = charts.line_chart(
        lines,
        title="Perplexity against sparsity",
        x_title="share of prunable weights removed →",
        y_title="↑ perplexity, lower is better",
        x_words=percent,
        y_words=decimal,
        log_beyond=5,
    )
    heads = ("Method", "Removed", "Perplexity", "Against dense", "Time")
    body = [
        tag(
            "tr",
            tag("th", row["way"], scope="row"),
            tag("td", percent(row["sparsity"])),
            tag("td", decimal(row["perplexity"])),
            tag("td", "–" if not dense else f"{row['perplexity'] / dense:.2f}×"),
            tag("td", duration(finite(row.get("seconds")))),
        )
        for row in rows
    ]
    table = tag(
        "div",
        tag(
            "table",
            tag("caption", f"The dense model has a perplexity of {decimal(dense)}."),
            tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))),
            tag("tbody", *body),
        ),
        class_="scroll",
        role="region",
        aria_label="Comparison of methods",
        tabindex=0,
    )
    lede = f"On {comparison.get('data', 'held-out text')}; without any training after pruning."
    return section("compared", "What each method costs", lede, tag("div", chart, class_="charts"), table)


def _sensitivity(found: dict[str, Any]) -> Markup | None:
    losses, levels = found.get("loss") or {}, found.get("sparsities") or []
    dense = finite(found.get("dense"))
    if not losses or dense is None:
        return None
    lines = []
    for number, (name, by_layer) in enumerate(losses.items()):
        means = np.mean(by_layer, axis=0) - dense
        points = [(0.0, 0.0), *zip(levels, means.tolist(), strict=True)]
        lines.append(charts.Series(f"hue-{number % _HUES + 1}", short(name), points))
    chart = charts.line_chart(
        lines,
        title="Loss against sparsity",
        x_title="share of one matrix's weights removed →",
        y_title="loss above that of the dense model, nats per token, mean over layers",
        x_words=percent,
        y_words=precise,
    )
    parts = [tag("div", chart, class_="charts")]
    for number, level in enumerate(levels):
        grown = {name: (np.array(by_layer)[:, number] - dense).tolist() for name, by_layer in losses.items()}
        caption = f"Loss above the dense model's with {percent(level)} of one matrix removed"
        parts.append(heat(grown, caption=caption, words=precise))
    planned = found.get("budget") or {}
    if planned:
        caption = f"Sparsity of each matrix that reaches {percent(planned.get('sparsity'))} at the least loss"
        parts.append(heat(planned.get("table", {}), caption=caption, words=percent))
    lede = f"The dense model's loss is {precise(dense)} nats per token. Pruned by {found.get('method')}."
    return section("sensitivity", "What each matrix bears", lede, *parts)
