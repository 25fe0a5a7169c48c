"""The verb `eval`."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps

import tyro
from tyro.conf import FlagCreatePairsOff

from ragjax.cli.arguments import ModelName


def run(given: list[str]) -> None:
    """Does `ragjax eval`, given the words that follow it."""
    tyro.cli(_evaluate, args=given, prog="ragjax eval")


def _evaluate(
    model: ModelName,
    data: str = "builtin:python",
    sequence_length: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = 8,
    teacher: str | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Measure a model: perplexity on a text, size, sparsity and speed.

    Args:
        data: Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME.
        sequence_length: Tokens the model sees at once; none: as many as it has positions, 2048 at most.
        stride: Tokens the window moves; none: half of the sequence length.
        max_tokens: Tokens that are scored at most; none: all.
        batch_size: Windows evaluated at once.
        teacher: MODEL whose forward speed is measured in turns with this one's, for the ratio.
        json: Print one JSON object.
    """
    from ragjax.evaluation.figures import default_length
    from ragjax.evaluation.figures import evaluate as measure
    from ragjax.evaluation.speed import forward_speed
    from ragjax.interchange.folder import load
    from ragjax.interchange.size import stored_bytes
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    loaded, speed = load(model), None
    if teacher is not None:
        both = {"teacher": load(teacher), "model": loaded}
        length = sequence_length or default_length(*both.values())
        speed = forward_speed(both, batch=1, length=length)["model"]
    figures = measure(
        loaded, data, sequence_length=sequence_length, stride=stride, max_tokens=max_tokens,
        batch_size=batch_size, stored_bytes=stored_bytes(model), speed=speed,
    )  # fmt: skip
    if json:
        print(dumps(asdict(figures)))
    else:
        from ragjax.evaluation.table import print_figures

        print_figures({model: figures})
