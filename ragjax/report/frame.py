"""What every chart has around its data: axes, a title, a description, a place for the read-out."""

from __future__ import annotations

from collections.abc import Callable

from ragjax.report.markup import Markup, tag
from ragjax.report.scales import Scale
from ragjax.report.words import trimmed

PLOT_HEIGHT = 260
"""Pixels."""
Words = Callable[[float], str]
"""Writes a value of an axis."""


def percentage(fraction: float) -> str:
    """A place in a plot: 0.5 -> 50.00%."""
    return f"{100 * fraction:.2f}%"


def axes(x: Scale, y: Scale, x_words: Words, y_words: Words) -> Markup:
    """Lines and labels at the ticks of y, ticks and labels of x."""
    parts = []
    for value in y.ticks():
        height = percentage(1 - y.fraction(value))
        parts.append(tag("line", x1=0, x2="100%", y1=height, y2=height))
        parts.append(tag("text", trimmed(y_words(value)), x=-8, y=height, dy=4, text_anchor="end"))
    for value in x.ticks(4):
        place = x.fraction(value)
        anchor = "end" if place > 0.97 else "middle"
        parts.append(
            tag("line", x1=percentage(place), x2=percentage(place), y1="100%", y2="100%", class_="tick")
        )
        parts.append(
            tag("text", trimmed(x_words(value)), x=percentage(place), y="100%", dy=20, text_anchor=anchor)
        )
    parts.append(tag("line", x1=0, x2="100%", y1="100%", y2="100%", class_="base"))
    return tag("g", *parts, class_="axes")


def framed(
    inner: Markup,
    *,
    title: str,
    spoken: str,
    x_title: str,
    y_title: str,
    legend: object = None,
    note: object = None,
    **data: str,
) -> Markup:
    """A figure around the SVG elements `inner`; `spoken` is what a screen reader says of them."""
    drawing = tag(
        "svg", inner, width="100%", height=PLOT_HEIGHT, role="img", aria_label=f"{title}. {spoken}."
    )
    readout = tag("div", class_="readout", hidden=True) if data else None
    return tag(
        "figure",
        tag("figcaption", tag("h3", title)),
        legend,
        tag("p", y_title, class_="axis-title"),
        tag("div", drawing, readout, class_="plot", **data),
        tag("p", x_title, class_="axis-title below"),
        tag("p", note, class_="note") if note else None,
        class_="chart",
    )
