"""Charts as inline SVG that keeps its type size at any width.

Every position inside a plot is a percentage of it, so one drawing serves a phone, a desk and
paper; margins and text are in pixels and belong to the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ragjax.report.frame import PLOT_HEIGHT, Words, axes, framed, percentage
from ragjax.report.markup import Markup, escaped, joined, tag
from ragjax.report.scales import Scale, scale_of, spread
from ragjax.report.words import trimmed

Point = tuple[float, float | None]
"""x and y; y is None where the value was not finite."""
LABEL_GAP = 38
"""Pixels between the labels of a scatter chart, where there is room for them."""
MOST_POINTS = 400
"""Points drawn of one line; of more, the extremes of each stretch stay."""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    key: str
    """Name that the style sheet knows: gives colour and dashes."""
    label: str
    points: Sequence[Point]
    """In the order of x."""


@dataclass(frozen=True)
class Mark:
    """One labelled point of a scatter chart."""

    key: str
    label: str
    note: str
    """Second line of the label: the figures."""
    x: float
    y: float


@dataclass(frozen=True)
class Bar:
    """One bar: its length, and the text beside it."""

    key: str
    label: str
    value: float
    text: str


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_title: str,
    y_title: str,
    x_words: Words,
    y_words: Words,
    y_range: tuple[float, float] | None = None,
    log_beyond: float = math.inf,
    note: object = None,
) -> Markup:
    """Lines over a common x axis that begins at 0.

    Args:
      series: lines with at least one finite point among them; a value that is None breaks its line
        and is marked at the top edge.
      title: what the chart shows.
      x_title: name and unit of the x axis.
      y_title: name and unit of the y axis.
      x_words: writes a value of x.
      y_words: writes a value of y.
      y_range: values the y axis must hold; what lies above it is cut off, and the chart says so.
        None: all values.
      log_beyond: make the y axis logarithmic where values span more than so many times the least.
      note: sentence below the chart.
    """
    x = scale_of([point[0] for line in series for point in line.points], from_zero=True)
    values = [v for line in series for _, v in line.points if v is not None]
    y = scale_of(y_range or values, log_beyond=log_beyond)
    is_cut = max(values) > y.high
    cut = f"Values above {trimmed(y_words(y.high))} are cut off." if is_cut else None
    drawn = [_line(line, x, y) for line in series]
    markers = [_markers(line, x, y, y_words) for line in series]
    legend = tag(
        "ul",
        *(
            tag("li", _swatch(line.key), line.label, tag("b", _last(line, y_words)), class_=line.key)
            for line in series
        ),
        class_="legend",
        aria_hidden="true",
    )
    spoken = "; ".join(
        f"{line.label}: from {y_words(own[0])} to {y_words(own[-1])}"
        for line in series
        if (own := [v for _, v in line.points if v is not None])
    )
    inner = joined(
        [
            axes(x, y, x_words, y_words),
            tag(
                "svg",
                *drawn,
                viewBox="0 0 1000 1000",
                preserveAspectRatio="none",
                width="100%",
                height="100%",
                overflow="hidden" if is_cut else "visible",
            ),
            *markers,
            tag("line", class_="cursor", y1="0", y2="100%", visibility="hidden"),
        ]
    )
    return framed(
        inner, title=title, spoken=spoken, x_title=x_title, legend=legend,
        y_title=f"{y_title} (logarithmic)" if y.log else y_title,
        note=joined([part for part in (cut, note) if part], " "),
        data_low=f"{x.low:g}", data_high=f"{x.high:g}", data_unit=x_title,
    )  # fmt: skip


def scatter(
    marks: Sequence[Mark],
    *,
    title: str,
    x_title: str,
    y_title: str,
    x_words: Words,
    y_words: Words,
    better: str,
    edge: Sequence[tuple[float, float]] = (),
    note: object = None,
) -> Markup:
    """Labelled points; x begins at 0, y is logarithmic where its values span more than fivefold.

    Args:
      marks: the points; at least one.
      title: what the chart shows.
      x_title: name and unit of the x axis.
      y_title: name and unit of the y axis.
      x_words: writes a value of x.
      y_words: writes a value of y.
      better: corner in which the best point would lie: "bottom left" or "bottom right".
      edge: x and y of points that a line joins, in the order of x.
      note: sentence below the chart.
    """
    x = scale_of([mark.x for mark in marks], from_zero=True)
    y = _roomy(scale_of([mark.y for mark in marks], log_beyond=5))
    heights = [(1 - y.fraction(mark.y)) * PLOT_HEIGHT for mark in marks]
    gap = min(LABEL_GAP, (PLOT_HEIGHT - 36) / max(1, len(marks) - 1))
    labels = spread(heights, gap, 10, PLOT_HEIGHT - 26)
    drawn = []
    for mark, height, label in zip(marks, heights, labels, strict=True):
        side = -1 if x.fraction(mark.x) > 0.6 else 1
        shift = label - height
        anchor = "end" if side < 0 else "start"
        drawn.append(
            tag(
                "svg",
                tag("line", x1=side * 7, y1=0, x2=side * 13, y2=f"{shift:.1f}", class_="leader"),
                _shape(mark.key),
                tag("text", mark.label, x=side * 16, y=f"{shift:.1f}", text_anchor=anchor, class_="name"),
                tag(
                    "text", mark.note, x=side * 16, y=f"{shift + 15:.1f}", text_anchor=anchor, class_="value"
                ),
                x=percentage(x.fraction(mark.x)),
                y=percentage(1 - y.fraction(mark.y)),
                overflow="visible",
                class_=f"mark {mark.key}",
            )
        )
    spoken = f"better is {better}; " + "; ".join(f"{mark.label}: {mark.note}" for mark in marks)
    inner = joined([axes(x, y, x_words, y_words), *_edge(edge, x, y), *drawn])
    y_title = f"{y_title} (logarithmic)" if y.log else y_title
    arrow = "↙" if better == "bottom left" else "↘"
    corner = tag("p", f"{arrow} best is {better}", class_="corner")
    return framed(
        inner, title=title, spoken=spoken, x_title=x_title, y_title=y_title, legend=corner, note=note
    )


def bars(rows: Sequence[Bar], *, title: str, hidden_title: bool = False) -> Markup:
    """Horizontal bars from 0, as a table that reads aloud.

    Args:
      rows: values that are not negative.
      title: the table's caption.
      hidden_title: leave the caption to screen readers.
    """
    most = max((row.value for row in rows), default=0) or 1
    return tag(
        "table",
        tag("caption", title, class_="unseen" if hidden_title else None),
        tag(
            "tbody",
            *(
                tag(
                    "tr",
                    tag("th", row.label, scope="row"),
                    tag(
                        "td",
                        tag(
                            "svg",
                            tag("rect", width=percentage(row.value / most), height="100%", rx=2),
                            width="100%",
                            height=10,
                            aria_hidden="true",
                        ),
                        class_="length",
                    ),
                    tag("td", row.text, class_="value"),
                    class_=row.key,
                )
                for row in rows
            ),
        ),
        class_="bars",
    )


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points: of each stretch the lowest and the highest, and every gap.

    Example:
      >>> thinned([(0, 5.0), (1, 9.0), (2, 1.0), (3, 4.0)], most=2)
      [(1, 9.0), (2, 1.0)]
    """
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        values = [(value, at) for at, value in stretch if value is not None]
        chosen: set[Point] = {(at, value) for value, at in (min(values), max(values))} if values else set()
        chosen |= {point for point in stretch if point[1] is None}
        kept += sorted(chosen, key=lambda point: point[0])
    return kept


def _line(line: Series, x: Scale, y: Scale) -> Markup:
    """The line as one path in a square of 1000 units, broken where a value is None."""
    points = thinned(line.points)
    commands = []
    for before, (at, value) in zip([(0.0, None), *points[:-1]], points, strict=True):
        if value is not None:
            move = "M" if before[1] is None else "L"
            commands.append(f"{move}{1000 * x.fraction(at):.1f} {1000 * (1 - y.fraction(value)):.1f}")
    return tag("path", d="".join(commands), class_=f"line {line.key}", vector_effect="non-scaling-stroke")


def _edge(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> list[Markup]:
    """Straight lines from point to point."""
    places = [(percentage(x.fraction(a)), percentage(1 - y.fraction(b))) for a, b in points]
    return [
        tag("line", x1=left, y1=top, x2=right, y2=bottom, class_="edge")
        for (left, top), (right, bottom) in pairwise(places)
    ]


def _markers(line: Series, x: Scale, y: Scale, words: Words) -> Markup:
    """Values for the read-out; dots where the points are few, crosses where a value was not finite."""
    points = thinned(line.points)
    few = len(points) <= 16
    found = []
    for at, value in points:
        left = percentage(x.fraction(at))
        if value is None:
            found.append(tag("text", "×", tag("title", "not finite"), x=left, y=0, dy=4, class_="broken"))
        elif few and y.low <= value <= y.high:
            found.append(tag("circle", cx=left, cy=percentage(1 - y.fraction(value)), r=3))
    values = " ".join(f"{at:g}:{words(v).replace(' ', '')}" for at, v in points if v is not None)
    return tag("g", *found, class_=f"dots {line.key}", data_label=line.label, data_values=values)


def _roomy(scale: Scale) -> Scale:
    """`scale` with room below for points and their labels."""
    if scale.log:
        return Scale(scale.low * (scale.low / scale.high) ** 0.15, scale.high, log=True)
    return Scale(scale.low - 0.15 * (scale.high - scale.low), scale.high)


_SHAPES = {
    "teacher": tag("rect", x=-6, y=-6, width=12, height=12),
    "student": tag("circle", r=7),
    "control": tag("path", d="M0-8 8 6H-8Z"),
    "scratch": tag("path", d="M0-8 8 0 0 8-8 0Z"),
    "other": tag("path", d="M-2.5-7h5v4.5H7v5H2.5V7h-5V2.5H-7v-5h4.5Z"),
}


def _shape(key: str) -> Markup:
    return _SHAPES.get(key, _SHAPES["student"])


def _swatch(key: str) -> Markup:
    return tag("svg", tag("line", x1=0, x2=24, y1=5, y2=5, class_=f"line {key}"), width=24, height=10)


def _last(line: Series, words: Words) -> Markup:
    values = [value for _, value in line.points if value is not None]
    return escaped(words(values[-1]) if values else "")
