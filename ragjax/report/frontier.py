"""The section on what writing costs: quality against the speed and the size that `ragjax bench` measured."""

from __future__ import annotations

from collections.abc import Sequence

from ragjax.report import charts
from ragjax.report.bench import Bench, Benched
from ragjax.report.markup import Markup, tag
from ragjax.report.numbers import finite
from ragjax.report.read import Run
from ragjax.report.sections import section
from ragjax.report.tables import scrolling
from ragjax.report.words import SPACE, compact, decimal, grouped, in_bytes, percent, times

_ENGINES = {"jax": "JAX", "onnx": "onnxruntime"}
_FEWEST = 2
"""Points in a chart."""


def frontier(run: Run) -> Markup | None:
    """Perplexity against decoded tokens a second and against stored bytes, and all that was measured."""
    bench = run.bench
    if bench is None:
        return None
    if not bench.models:
        said = "What was measured is of other models than are here now."
        return section("frontier", "What writing costs", said, _left_out(bench))
    batches = sorted({batch for model in bench.models for batch in model.batch})
    charted = [*(_speed_chart(bench, batch) for batch in batches[:1]), _size_chart(bench)]
    drawn = [chart for chart in charted if chart is not None]
    return section(
        "frontier",
        "What writing costs",
        _lede(bench),
        tag("div", *drawn, class_="charts") if drawn else None,
        _models(bench),
        *([_speeds(bench, batches)] if batches else []),
        _left_out(bench),
    )


def best(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points beside which no other is at least as good in both ways and better in one, in their order.

    Args:
      points: costs of two kinds; less is better.

    Example:
      >>> best([(1, 9), (2, 5), (3, 6), (4, 1)])
      [(1, 9), (2, 5), (4, 1)]
    """
    return [
        own
        for own in points
        if not any(one != own and one[0] <= own[0] and one[1] <= own[1] for one in points)
    ]


def _lede(bench: Bench) -> str:
    options = bench.options
    prompt, new, rounds = (finite(options.get(key)) for key in ("prompt_tokens", "new_tokens", "rounds"))
    reads = (
        "" if bench.bandwidth is None else f" Its memory is read at {bench.bandwidth / 1e9:.1f}{SPACE}GB/s."
    )
    return (
        f"Models wrote {grouped(new)} tokens after {grouped(prompt)}, in turns; medians of {grouped(rounds)} "
        f"rounds, ratios to {bench.first} within each. Measured {bench.date[:10]} on {bench.machine}.{reads} "
        "Zeros, stored bytes and speed are three figures: none of them follows from another."
    )


def _speed_chart(bench: Bench, batch: int) -> Markup | None:
    points = [
        (model, model.batch[batch]["decode_tokens_per_second"], model.perplexity)
        for model in bench.models
        if batch in model.batch and model.perplexity is not None
    ]
    edge = [(-x, y) for x, y in best([(-x, y) for _, x, y in points])]
    return _chart(
        points, edge, title=f"Quality against writing speed, batch {batch}",
        x_title="tokens written per second →", x_words=compact, better="bottom right",
    )  # fmt: skip


def _size_chart(bench: Bench) -> Markup | None:
    points = [
        (model, model.stored_bytes, model.perplexity)
        for model in bench.models
        if model.stored_bytes is not None and model.perplexity is not None
    ]
    return _chart(
        points, best([(x, y) for _, x, y in points]), title="Quality against stored bytes",
        x_title="stored size →", x_words=in_bytes, better="bottom left",
    )  # fmt: skip


def _chart(
    points: Sequence[tuple[Benched, float, float]],
    edge: Sequence[tuple[float, float]],
    *,
    title: str,
    x_title: str,
    x_words: charts.Words,
    better: str,
) -> Markup | None:
    if len(points) < _FEWEST:
        return None
    joined = sorted(set(edge))
    marks = [
        charts.Mark(_key(model), _title(model), f"{decimal(y)} · {x_words(x)}", x, y)
        for model, x, y in points
    ]
    return charts.scatter(
        marks, title=title, x_title=x_title, y_title="↑ perplexity, lower is better", x_words=x_words,
        y_words=lambda value: f"{value:g}", better=better, edge=joined,
        note="The line joins those that no other beats in both." if len(joined) > 1 else None,
    )  # fmt: skip


def _models(bench: Bench) -> Markup:
    rows = []
    for model in bench.models:
        why = tag("small", model.why) if model.perplexity is None and model.why else None
        rows.append(
            tag(
                "tr",
                _head(model),
                tag("td", _ENGINES.get(model.engine, model.engine)),
                tag("td", model.weights),
                tag("td", in_bytes(model.stored_bytes)),
                tag("td", percent(model.zeros)),
                tag("td", decimal(model.perplexity), why),
            )
        )
    heads = ("Model", "Run by", "Weights in memory", "Stored bytes", "Zeros among prunable", "Perplexity")
    caption = "What was measured, and how good it is on the run’s held-out text"
    return _table(caption, heads, [tag("tbody", *rows)])


def _speeds(bench: Bench, batches: Sequence[int]) -> Markup:
    heads = (
        "Model", "First token", "Prompt tokens per second", "New tokens per second", "Weights read per token",
        "Of the bandwidth",
    )  # fmt: skip
    bodies = []
    for batch in batches:
        title = f"batch {batch}: {batch} prompt{'s' if batch > 1 else ''} at once"
        rows = [tag("tr", tag("th", title, colspan=len(heads), scope="rowgroup"), class_="group")]
        for model in bench.models:
            if told := model.batch.get(batch):
                rows.append(
                    tag(
                        "tr",
                        _head(model),
                        tag("td", f"{1e3 * told['first_token_seconds']:,.1f}{SPACE}ms"),
                        tag("td", compact(told["prefill_tokens_per_second"]), _times(told["prefill_ratio"])),
                        tag("td", compact(told["decode_tokens_per_second"]), _times(told["decode_ratio"])),
                        tag("td", in_bytes(told["bytes_per_token"])),
                        tag("td", percent(told["share_of_bandwidth"])),
                    )
                )
        bodies.append(tag("tbody", *rows))
    return _table(f"Speed of reading and writing; × is to {bench.first}", heads, bodies)


def _times(ratio: float) -> Markup:
    return tag("small", f"{times(ratio)}×")


def _table(caption: str, heads: Sequence[str], bodies: Sequence[Markup]) -> Markup:
    return scrolling(
        tag(
            "table",
            tag("caption", tag("span", caption)),
            tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))),
            *bodies,
        ),
        caption,
    )


def _head(model: Benched) -> Markup:
    return tag("th", tag("span", _title(model), class_=f"key {_key(model)}"), scope="row")


def _left_out(bench: Bench) -> Markup | None:
    if not bench.left_out:
        return None
    said = f"Left out: {' '.join(bench.left_out)} To have them back, measure again with ragjax bench."
    return tag("p", said, class_="note")


def _key(model: Benched) -> str:
    return model.role or "other"


def _title(model: Benched) -> str:
    return f"{model.name} (onnx)" if model.engine == "onnx" else model.name
