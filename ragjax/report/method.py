"""The sections for those who want to check, repeat or use a run."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ragjax.report import charts, tables
from ragjax.report.markup import Markup, tag
from ragjax.report.numbers import finite
from ragjax.report.read import Run
from ragjax.report.sections import section
from ragjax.report.words import decimal, duration, grouped, percent


def use(run: Run) -> Markup:
    """How to run the student, and this run again."""
    student, folder = json.dumps(f"{run.folder.as_posix()}/student"), shlex.quote(run.folder.as_posix())
    python = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({student})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({student})\n"
        'tokens = tokenizer("Once upon a time", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=60)[0]))"
    )
    shell = f'ragjax generate {folder} --prompt "Once upon a time"'
    return section(
        "use",
        "Use the student",
        "The student is a Hugging Face folder: transformers, and whatever reads its format, can load it.",
        tag(
            "div",
            _code("Python, with transformers and torch", python),
            _code("Command line", shell),
            class_="uses",
        ),
    )


def method(run: Run) -> Markup:
    """How each figure was measured, where, and what it does not show."""
    seed = run.summary.get("seed")
    care = [
        f"One training was run{'' if seed is None else f' (seed {seed})'}: "
        "small differences between models may be chance. Run other seeds before you rely on them.",
        "Perplexity measures how well held-out text of this kind is predicted; it is not skill at a task.",
        "Speed is that of reading text on this machine. Another machine, batch size or runtime gives another "
        "ratio, and so does writing token by token.",
    ]
    if run.unreadable:
        care.append(f"Damaged, and left out of this page: {', '.join(run.unreadable)}.")
    terms = [tag("div", tag("dt", name), tag("dd", words)) for name, words in _measures(run)]
    return section(
        "method",
        "How this was measured",
        None,
        tag("div", tag("h3", "Read with care"), tag("ul", *(tag("li", c) for c in care)), class_="care"),
        tag("dl", *terms, class_="measures"),
    )


def _measures(run: Run) -> list[tuple[str, str]]:
    evaluate = run.config.get("evaluate")
    evaluate = evaluate if isinstance(evaluate, dict) else {}
    length = finite(evaluate.get("sequence_length"))
    stride = finite(evaluate.get("stride"))
    window = f"{grouped(length)} tokens" if length else "as many tokens as the model has positions"
    moved = f"{grouped(stride)} tokens" if stride else "half of that"
    scored = run.models["student"].get("tokens")
    data = run.summary.get("data")
    data = data if isinstance(data, dict) else {}
    source = f"the validation text {data['validation']}" if data.get("validation") else "the validation text"
    if not data.get("validation") and data.get("train"):
        source = f"the validation split of {data['train']}"
    count = f" {grouped(scored)} tokens" if scored else " the tokens"
    rounds = len(run.rounds["student"]) or finite(evaluate.get("speed_rounds"))
    clock = f"the median of {grouped(rounds)} rounds" if rounds else "the median of several rounds"
    return [
        (
            "Perplexity per token",
            f"The exponential of the mean negative log-likelihood of{count} of "
            f"{source}. The model sees {window} at once, "
            f"the window moves by {moved}, and each token is scored once.",
        ),
        (
            "Perplexity per word, bits per byte",
            "The log-likelihood of the text itself, without end-of-text tokens, divided by its words or "
            "UTF-8 bytes: comparable between tokenizers, as perplexity per token is not.",
        ),
        ("Stored bytes", "Bytes of the weights as they are saved in the model’s folder."),
        (
            "Zeros",
            "Weights that are exactly zero, counted; once over the matrices that may be pruned, "
            "once over all parameters.",
        ),
        (
            "Tokens read per second",
            f"Forward passes over whole sequences, {clock}; the models take turns in every round, "
            "so that a busy moment of the machine hits all alike.",
        ),
        (
            "Training and validation loss",
            "Training: the text’s cross-entropy in the step’s own batch. Validation: held-out sequences, "
            "at fixed steps.",
        ),
        *_own_text(run),
    ]


def _own_text(run: Run) -> list[tuple[str, str]]:
    """What the student learnt of its own writing, where it wrote any."""
    entries = run.metrics.get("student", ())
    shares = [x for e in entries if (x := finite(e.get("on_policy"))) is not None]
    lengths = [x for e in entries if (x := finite(e.get("written_tokens"))) is not None]
    if not shares or not lengths:
        return []
    return [
        (
            "Text of its own",
            f"In {percent(shares[-1])} of its steps the student learnt from its teacher’s view of what it "
            f"had itself written after prompts of the text: {decimal(sum(lengths) / len(lengths))} tokens a "
            "sequence in the steps that are told. Those steps are left out of its training loss.",
        )
    ]


def details(run: Run) -> Markup:
    """Machine, versions, time, and the whole config with the command that repeats it."""
    seconds = run.summary.get("seconds")
    spent = [
        charts.Bar(str(stage), str(stage).replace("_", " ").capitalize(), value, duration(value))
        for stage, given in (seconds.items() if isinstance(seconds, dict) else ())
        if (value := finite(given)) is not None and value >= 0
    ]
    total = sum(bar.value for bar in spent)
    time = charts.bars(spent, title=f"Time spent: {duration(total)} in all") if spent else None
    facts = tag(
        "table",
        tag("caption", "Machine and software"),
        tag("tbody", *(tag("tr", tag("th", k, scope="row"), tag("td", v)) for k, v in _facts(run.summary))),
        class_="settings",
    )
    return section(
        "run", "The run itself", None, tag("div", tag("div", facts), time, class_="charts"), _config(run)
    )


def _config(run: Run) -> Markup | None:
    if not run.config:
        return None
    folder = run.folder.as_posix()
    verb = "train" if run.config.get("kind") == "Pretrain" else "compress"
    again = f"ragjax {verb} {shlex.quote(f'{folder}/config.json')} --workdir {shlex.quote(f'{folder}-again')}"
    return tag(
        "div",
        _code("Run it again", again),
        tag("details", tag("summary", "The whole config"), tables.settings(run.config)),
        class_="config",
    )


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, Any]] = []
    device = summary.get("device")
    if isinstance(device, dict):
        count = finite(device.get("count"))
        many = f"{count:.0f} × " if count and count > 1 else ""
        kind = f" ({device['kind']})" if device.get("kind") else ""
        found.append(("Device", f"{many}{device.get('name') or 'unnamed'}{kind}"))
    data = summary.get("data")
    if isinstance(data, dict):
        found += [(f"Text for {key}", value) for key, value in data.items()]
    found += [("Seed", summary.get("seed")), ("Git revision", summary.get("git"))]
    found.append(("ragjax", summary.get("ragjax")))
    versions = summary.get("versions")
    found += list(versions.items()) if isinstance(versions, dict) else []
    return [(str(key), str(value)) for key, value in found if value is not None]


def _code(title: str, text: str) -> Markup:
    return tag("figure", tag("figcaption", title), tag("pre", tag("code", text), tabindex=0), class_="code")
