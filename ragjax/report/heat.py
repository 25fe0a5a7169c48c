"""Tables of shaded cells: one figure for each matrix and layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ragjax.report.markup import Markup, tag
from ragjax.report.numbers import finite
from ragjax.report.words import NONE, SPACE


def heat(
    rows: Mapping[str, Sequence[float | None]], *, caption: str, words: Callable[[float | None], str]
) -> Markup:
    """A row for each matrix, a column for each layer, darker where a figure is higher.

    Args:
      rows: a figure for each layer, by the name of the parameter.
      caption: what the figures are.
      words: writes a figure; a unit that follows it is left to the caption.
    """
    known = [abs(value) for row in rows.values() for each in row if (value := finite(each)) is not None]
    most = max(known, default=0) or 1

    def cell(given: object) -> Markup:
        value = finite(given)
        if value is None:
            return tag("td", NONE)
        share = max(0.0, value) / most
        return tag("td", words(value).split(SPACE)[0], style=f"--share:{share:.3f}", class_="filled")

    count = max(map(len, rows.values()), default=0)
    heads = [tag("th", layer, scope="col") for layer in range(count)]
    body = [
        tag("tr", tag("th", short(name), scope="row"), *(cell(each) for each in row))
        for name, row in rows.items()
    ]
    table = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", tag("th", "Layer", scope="col"), *heads)),
        tag("tbody", *body),
        class_="heat",
    )
    return tag("div", table, class_="scroll", role="region", aria_label=caption, tabindex=0)


def short(name: str) -> str:
    """A parameter's name without what all have: layers/mlp/up/kernel -> mlp up."""
    return name.removeprefix("layers/").removesuffix("/kernel").replace("/", " ")
