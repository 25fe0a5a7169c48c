"""The sections of the report; each is None where the run has nothing for it."""

from __future__ import annotations

from collections.abc import Callable

from ragjax.report import charts, curves, tables, verdict
from ragjax.report.markup import Markup, joined, tag
from ragjax.report.read import Run
from ragjax.report.words import (
    SPACE,
    change,
    compact,
    decimal,
    in_bytes,
    listed,
    percent,
    precise,
    times,
)

Words = Callable[[float | None], str]


def section(name: str, title: str, lede: object, *content: object) -> Markup:
    """A section with its heading and an introduction."""
    heading = tag("h2", title, id=f"{name}-title")
    intro = tag("p", lede, class_="lede") if lede else None
    return tag("section", tag("header", heading, intro), *content, id=name, aria_labelledby=f"{name}-title")


def top(run: Run) -> Markup:
    """Headline, verdict, and the figures that matter on cards."""
    said = joined(verdict.sentences(run), " ")
    return tag(
        "header",
        tag("p", "What compression gained, and what it cost", class_="kicker"),
        tag("h1", *_clauses(verdict.headline(run))),
        tag("p", said, class_="verdict"),
        tag("div", *_cards(run), class_="cards"),
        class_="top",
    )


def _clauses(line: str) -> list[Markup]:
    """The parts of a headline, so that lines break between them."""
    *first, last = line.split(", ")
    return [joined([tag("span", f"{part},"), " "]) for part in first] + [tag("span", last)]


def _cards(run: Run) -> list[Markup]:
    student, teacher = run.models["student"], run.models["teacher"]
    found = [
        _card(run, "perplexity", "Perplexity", decimal, "lower is better", ("better", "worse")),
        _card(run, "stored_bytes", "Stored size", in_bytes, "weights on disk", ("smaller", "larger")),
        _speed_card(run),
    ]
    sparsity = student.get("sparsity_prunable")
    if sparsity is not None:
        rows = [
            charts.Bar("student", "zero", sparsity, percent(sparsity)),
            charts.Bar("muted", "not zero", 1 - sparsity, percent(1 - sparsity)),
        ]
        before = teacher.get("sparsity_prunable")
        was = f"the teacher has {percent(before)}" if before is not None else None
        found.append(_card_frame("Zero weights", percent(sparsity), "of the prunable ones", was, rows))
    gain = verdict.distillation_gain(run)
    if gain is not None:
        rows = _bars(run, ("student", "control"), "perplexity", decimal)
        even = abs(gain) < verdict.EVEN_QUALITY * run.models["control"]["perplexity"]
        judged = "as good as the control" if even else f"{'better' if gain > 0 else 'worse'} than the control"
        title = "Worth of distillation"
        sign = "+" if gain > 0 else "−"
        found.append(_card_frame(title, f"{sign}{decimal(abs(gain))}", "points of perplexity", judged, rows))
    return [card for card in found if card]


def _card(
    run: Run, key: str, title: str, words: Words, hint: str, judgements: tuple[str, str]
) -> Markup | None:
    """A figure of the student against the teacher's; `judgements` are the words for less and for more."""
    student = run.models["student"].get(key)
    if student is None:
        return None
    against = change(student, run.models["teacher"].get(key))
    judged = None
    if against is not None:
        even = percent(abs(against)) == percent(0.0)
        judged = f"{percent(abs(against))} {judgements[against > 0]} than the teacher"
        judged = "the same as the teacher" if even else judged
    return _card_frame(title, words(student), hint, judged, _bars(run, ("teacher", "student"), key, words))


def _speed_card(run: Run) -> Markup | None:
    ratio = verdict.speed_ratio(run)
    if ratio is None:
        return None
    word = "faster" if ratio > 1 else "slower"
    judged = "no clear difference" if verdict.is_even_speed(run) else f"{word} than the teacher"
    rows = _bars(run, ("teacher", "student"), "tokens_per_second", compact)
    return _card_frame("Reading speed", f"{times(ratio)}×", "tokens a second, this machine", judged, rows)


def _bars(run: Run, names: tuple[str, ...], key: str, words: Words) -> list[charts.Bar]:
    known = [(name, value) for name in names if (value := run.models[name].get(key)) is not None]
    return [charts.Bar(name, name, max(0.0, value), words(value)) for name, value in known]


def _card_frame(title: str, big: str, hint: str, judged: str | None, rows: list[charts.Bar]) -> Markup:
    return tag(
        "article",
        tag("h2", title),
        tag("p", big, class_="big"),
        tag("p", judged, class_="judged") if judged else None,
        tag("p", hint, class_="hint"),
        charts.bars(rows, title=f"{title}: {hint}", hidden_title=True),
        class_="card",
    )


def compared(run: Run) -> Markup:
    """All figures of all models, and why three of them must not be mistaken for one another."""
    who = {
        "teacher": "the model that was compressed",
        "student": "what came out",
        "control": "the same start, sparsity, text and steps as the student, but without the teacher’s loss",
        "scratch": "the student’s shape, trained from a random start",
    }
    terms = [
        tag("div", tag("dt", name.capitalize(), class_=f"key {name}"), tag("dd", who[name]))
        for name in run.models
    ]
    return section(
        "models",
        "The models, figure by figure",
        "Perplexity is, roughly, among how many tokens a model still hesitates when it guesses the next one.",
        tag("dl", *terms, class_="who"),
        tables.comparison(run),
        _three_numbers(run),
    )


def _three_numbers(run: Run) -> Markup:
    student, teacher = run.models["student"], run.models["teacher"]
    layers, of = student.get("layers"), teacher.get("layers")
    shrunk = bool(layers and of and layers < of)
    why = (
        f"Here {layers:.0f} layers are computed instead of {of:.0f}; that is what can save time."
        if shrunk
        else "Here the student computes as many layers as its teacher."
    )
    facts = (
        (
            "Logical sparsity",
            percent(student.get("sparsity_prunable")),
            "How many prunable weights are exactly zero. It says what a sparse format or sparse hardware "
            "could use, not what is used.",
        ),
        (
            "Stored bytes",
            in_bytes(student.get("stored_bytes")),
            "What the weights take on disk. A zero is stored like any other number, so it falls with fewer "
            "or smaller numbers alone.",
        ),
        (
            "Measured speed",
            f"{times(verdict.speed_ratio(run))}×",
            "What a clock said on this machine. Zeros alone bring no speed: dense kernels "
            f"multiply them too. {why}",
        ),
    )
    return tag(
        "aside",
        tag("h3", "Three different numbers"),
        tag("div", *(tag("div", tag("h4", t), tag("p", v, class_="big"), tag("p", w)) for t, v, w in facts)),
        class_="three",
    )


def trade(run: Run) -> Markup | None:
    """Quality against stored size, and against measured speed."""
    drawn = []
    for key, title, x_title, words, better in (
        ("stored_bytes", "Quality against size", "stored size", in_bytes, "bottom left"),
        ("tokens_per_second", "Quality against speed", "tokens read per second", compact, "bottom right"),
    ):
        marks = [
            charts.Mark(
                name,
                name.capitalize(),
                f"{decimal(f['perplexity'])} · {words(f[key])}",
                f[key],
                f["perplexity"],
            )
            for name, f in run.models.items()
            if key in f and "perplexity" in f
        ]
        if len(marks) > 1:
            drawn.append(
                charts.scatter(
                    marks, title=title, x_title=f"{x_title} →", y_title="↑ perplexity, lower is better",
                    x_words=words, y_words=lambda v: f"{v:g}", better=better,
                )
            )  # fmt: skip
    if not drawn:
        return None
    lede = "Each model is one point. The closer to the marked corner, the more it gives for what it costs."
    return section("trade", "What was paid for what", lede, tag("div", *drawn, class_="charts"))


def learned(run: Run) -> Markup | None:
    """Losses and sparsity over tokens."""
    unit = "tokens read by each model →" if curves.has_tokens(run) else "steps →"
    training = "cross_entropy" if curves.series(run, "cross_entropy") else "loss"
    plots = (
        (
            training,
            None,
            "Training loss",
            "cross-entropy" if training != "loss" else "loss that was minimised",
        ),
        ("validation_loss", None, "Validation loss", "cross-entropy on held-out text"),
        ("forward_kl", None, "Distance to the teacher", "KL divergence from the teacher’s predictions"),
        ("hidden_mse", None, "Distance of hidden states", "mean squared error"),
        ("sparsity", ("student",), "Zero weights", "share of prunable weights"),
    )
    drawn = []
    for key, stages, title, measure in plots:
        lines = curves.series(run, key, stages)
        values = [value for line in lines for _, value in line.points if value is not None]
        if not values or max(at for line in lines for at, _ in line.points) <= 0:
            continue
        is_share = key == "sparsity"
        if is_share and not any(values):
            continue
        broken = any(value is None for line in lines for _, value in line.points)
        drawn.append(
            charts.line_chart(
                lines, title=title, x_title=unit, y_title=measure, x_words=compact,
                y_words=percent if is_share else precise,
                y_range=(0.0, max(values)) if is_share else curves.settled_range(lines),
                note="× marks a value that was not finite." if broken else None,
            )
        )  # fmt: skip
    if not drawn:
        return None
    alike = [name for name in ("student", "control", "scratch") if name in run.metrics]
    same = f" The models {listed(alike)} read the same text." if len(alike) > 1 else ""
    lede = f"Losses are nats per token.{same}"
    return section(
        "learning", "How they learned", lede, tag("div", *drawn, class_="charts"), tables.stages(run)
    )


def zeros(run: Run) -> Markup | None:
    """Where the student's zeros are."""
    if not run.masks or not any(entry.zeros for entry in run.masks):
        return None
    shares = [entry.zeros / entry.size for entry in run.masks]
    if max(shares) - min(shares) < 0.005:
        said = f"Every matrix gave up the same share of its weights: {percent(tables.share(run.masks))}."
    else:
        said = (
            f"Matrices gave up between {percent(min(shares))} and {percent(max(shares))} of their weights; "
            f"all together {percent(tables.share(run.masks))}."
        )
    scale = tag("p", "0", tag("span", class_="ramp"), f"100{SPACE}%", class_="scale", aria_hidden="true")
    return section("zeros", "Where the zeros are", said, tables.heat_map(run.masks), scale)


def samples(run: Run) -> Markup | None:
    """The same beginnings, continued by each model."""
    if not run.samples:
        return None
    drawn = []
    for number, sample in enumerate(run.samples, 1):
        columns = [
            tag(
                "div",
                tag("h4", name.capitalize(), class_=f"key {name}"),
                tag("p", sample[name], class_="text", dir="auto"),
            )
            for name in sample
            if name != "prompt"
        ]
        drawn.append(
            tag(
                "article",
                tag("h3", f"Sample {number}", class_="unseen"),
                tag("blockquote", sample.get("prompt", ""), class_="text", dir="auto"),
                tag("div", *columns, class_="columns"),
                class_="sample",
            )
        )
    lede = "Each model continues the same beginning. Samples show style, and are no measure of quality."
    return section("samples", "In their own words", lede, *drawn)
