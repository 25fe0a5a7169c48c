"""The table of verbs: a new one is a file with `run`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ragjax.cli import (
    bench,
    cache_teacher,
    compress,
    doctor,
    evaluate,
    export,
    generate,
    plan,
    prune,
    quantize,
    report,
    sensitivity,
    serve,
    shrink,
    tokenizer,
    train,
)


class Verb(NamedTuple):
    """What `ragjax VERB` does."""

    argument: str
    """What follows it, by the name that the overview has for it."""
    purpose: str
    """One line of the overview."""
    run: Callable[[list[str]], None]
    """Does it, given the words that follow the verb."""


VERBS = {
    "compress": Verb(
        "CONFIG", "teacher -> pruned and distilled student -> evaluation -> report", compress.run
    ),
    "train": Verb("CONFIG", "train one model, from scratch or on from another", train.run),
    "cache-teacher": Verb(
        "CONFIG", "run the teacher once, and keep what it says for its students", cache_teacher.run
    ),
    "plan": Verb("CONFIG", "what a run takes of each TPU chip, compiled without one", plan.run),
    "prune": Verb(
        "MODEL", "remove weights of a trained model at once, guided by a text; --compare methods", prune.run
    ),
    "sensitivity": Verb("MODEL", "how much pruning each matrix bears", sensitivity.run),
    "shrink": Verb("MODEL", "take neurons, heads, width or layers out, to sizes or to a budget", shrink.run),
    "quantize": Verb("MODEL", "keep its weights in 8 or 4 bits each", quantize.run),
    "eval": Verb("MODEL", "perplexity, size, sparsity and speed", evaluate.run),
    "bench": Verb("MODEL", "how fast it reads and writes, in turns with others", bench.run),
    "generate": Verb("MODEL", "continue a prompt", generate.run),
    "serve": Verb("MODEL", "answer over HTTP as OpenAI's API does, with a page to try it", serve.run),
    "export": Verb("MODEL", "write it elsewhere: Hugging Face, bitmask, GGUF, ONNX, StableHLO", export.run),
    "tokenizer": Verb("SOURCE", "train a byte-level BPE tokenizer", tokenizer.run),
    "report": Verb("RUN", "write a run's report.html again", report.run),
    "doctor": Verb("", "what this machine offers, and what is amiss", doctor.run),
}

_OVERVIEW = """\
ragjax takes a GPT and hands back a smaller, faster one, with the proof that it kept its quality.

usage: ragjax VERB ...

{verbs}

MODEL is a Hugging Face folder, a GGUF file, a hub id (openai-community/gpt2), or a ragjax run folder.
`ragjax VERB --help` tells more. To begin, offline, in about five minutes on two CPU cores:

  ragjax compress configs/quickstart.py
"""


def overview() -> str:
    """What `ragjax` says when it is given nothing."""
    rows = (f"  {name:<13} {verb.argument:<8}{verb.purpose}" for name, verb in VERBS.items())
    return _OVERVIEW.format(verbs="\n".join(rows))
