"""Shrinking: a trained model in, one with fewer neurons, heads, features and layers out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ragjax.config import Shrink
from ragjax.data import Batches, open_corpus, training_split
from ragjax.errors import InputError, listing
from ragjax.evaluation.speed import forward_speed
from ragjax.interchange.families import FAMILIES
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.shrink import (
    IMPORTANCE,
    Found,
    HeadShape,
    Range,
    Sizes,
    Subject,
    cut,
    cut_and_refit,
    explicit_sizes,
    flops_per_token,
    head_shape,
    pad_heads,
    parameter_count,
    resized,
    search,
    select,
    sizes_of,
    with_heads,
)
from ragjax.sparsity.shrink.cut import Errors
from ragjax.sparsity.shrink.search import Cost

_LONGEST_CALIBRATION, _LONGEST = 256, 512
"""Tokens in a sequence where nobody says how many: of the calibration text; of what is counted or timed."""
_MICROBATCH = 8
"""Sequences on the device at once, at most."""
_TIMED_STEPS = 16
"""Into how many steps a size is cut at most where every candidate has to be timed."""

Told = Callable[[str, int, int], None]
"""Told what is done, how many parts of it are, and of how many."""


class ShrinkReport(NamedTuple):
    """How a shrinking went."""

    config: Shrink
    """What was asked for."""
    before: DecoderConfig
    after: DecoderConfig
    layers: tuple[int, ...]
    """The layers that stayed, as the model counted them."""
    length: int
    """Tokens of the sequences that operations were counted for, or candidates timed with."""
    reached: float | None
    """The budget's cost over the model's; none where sizes were given alone."""
    timed: dict[Sizes, float]
    """latency: seconds of each candidate over the model's."""
    errors: Errors
    """Relative error of each refit projection's outputs, layer by layer: as it was cut, and refit."""
    seconds: float
    """How long it took, without reading and writing the model."""


class Shrunk(NamedTuple):
    """A smaller model, and how it came about."""

    model: Model
    report: ShrinkReport


def shrink(
    model: Model,
    config: Shrink,
    *,
    tokens: Int[np.ndarray, "samples seq"] | None = None,
    cache: str | Path | None = None,
    progress: Told = lambda what, done, of: None,
) -> Shrunk:
    """Takes the least important neurons, heads, features and layers out of a trained model's arrays.

    Every layer keeps its own best, and all layers as many. What was removed might as well have put out zeros,
    and norms see the kept features alone; then the projections that read heads and neurons are refit.

    A model whose heads fill the width (GPT-2) can be saved only if they still do, or after `as_written`.

    Args:
      model: the model; it is left as it is.
      config: how small, and what stays.
      tokens: the calibration text; none: what `config` names, read with the model's tokenizer.
      cache: folder of the token cache; none: RAGJAX_CACHE, or ~/.cache/ragjax.
      progress: told how far the work is.

    Returns:
      The smaller model, whose history says what was done, and figures.

    Raises:
      InputError: the model cannot be made so small, or cannot be written then, or the text is too short.

    Example:
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> shape = DecoderConfig(vocab_size=300, positions=32, width=16, layers=2, heads=4, mlp_width=64)
      >>> model = Model(shape, init_params(shape, seed=0))
      >>> half = Shrink(mlp_width=32, layers=1, importance="magnitude", compensate=False)
      >>> shrink(model, half).model.config.mlp_width
      32
    """
    began = time.monotonic()
    length = min(model.config.positions, config.length or _LONGEST)
    if config.length is not None and config.length > model.config.positions:
        raise InputError(
            f"length {config.length} must not exceed the model's {model.config.positions} positions."
        )
    reads = config.compensate or IMPORTANCE[config.importance].reads_text
    text = _calibration(model, config, tokens, cache) if reads else None
    timed: dict[Sizes, float] = {}
    found = _sizes(model, config, length, timed, progress)
    as_saved(resized(model.config, found.sizes))

    subject = Subject(model.config, model.params, text, config.seed)
    importance = IMPORTANCE[config.importance].measure(
        subject, lambda done, of: progress(f"importance by {config.importance}", done, of)
    )
    kept = select(importance, model.config, found.sizes)
    if config.compensate:
        assert text is not None
        small = cut_and_refit(
            model.config, model.params, kept, text, lambda done, of: progress("cut and refit", done, of)
        )
    else:
        small = cut(model.config, model.params, kept)
    layers = tuple(int(layer) for layer in kept.layers)
    reached = None if _budget(config) is None else found.share
    report = ShrinkReport(
        config, model.config, small.config, layers, length, reached, timed, small.errors,
        time.monotonic() - began,
    )  # fmt: skip
    history = (*model.history, _history(report, text))
    return Shrunk(Model(small.config, small.params, model.tokenizer, history), report)


def as_written(model: Model) -> Model:
    """The model as its family can be saved: itself, or with heads of zeros, which its history then tells.

    It computes the same. GPT-2, GPT-Neo, OPT and GPT-NeoX have no field for heads that do not fill the
    width; Llama's number of heads must divide it.

    Args:
      model: a shrunk model.

    Raises:
      InputError: no number of heads of zeros makes it a model that can be saved.
    """
    to = as_saved(model.config)
    if to == head_shape(model.config):
        return model
    params, config = pad_heads(model.params, model.config, to)
    told = {
        "did": "pad heads",
        "heads": [model.config.heads, config.heads],
        "kv_heads": [model.config.key_value_heads, config.key_value_heads],
        "head_width": [model.config.head_width, config.head_width],
        "parameters": [parameter_count(model.config), parameter_count(config)],
    }
    return replace(model, config=config, params=params, history=(*model.history, told))


def as_saved(config: DecoderConfig) -> HeadShape:
    """The heads with which an architecture can be saved: its own, or more or wider ones.

    Args:
      config: the architecture.

    Raises:
      InputError: there are none.
    """
    now = head_shape(config)
    if _writable(config):
        return now
    most = max(2 * config.heads, config.width // now.head_width)
    shapes = [
        HeadShape(groups, queries, width)
        for groups in range(now.kv_heads, most + 1)
        for queries in range(now.queries, most // groups + 1)
        for width in {now.head_width, config.width // (groups * queries)}
        if width >= now.head_width
    ]
    fitting = [shape for shape in shapes if _writable(with_heads(config, shape))]
    if not fitting:
        raise InputError(
            f"No family of models can write {config.heads} heads of {now.head_width} ({now.kv_heads} of keys "
            f"and values) in a width of {config.width}, not even filled up with heads of zeros: choose heads "
            f"and width so that heads x {now.head_width} is the width."
        )
    return min(fitting, key=lambda shape: (parameter_count(with_heads(config, shape)), shape))


def _writable(config: DecoderConfig) -> bool:
    return any(family.expresses(config) for family in FAMILIES.values())


def _budget(config: Shrink) -> tuple[str, float] | None:
    """The budget's name and share."""
    shares = {"params": config.params, "flops": config.flops, "latency": config.latency}
    return next(((name, share) for name, share in shares.items() if share is not None), None)


def _sizes(model: Model, config: Shrink, length: int, timed: dict[Sizes, float], progress: Told) -> Found:
    """The sizes asked for, or the largest within the budget."""
    shape, budget = model.config, _budget(config)
    asked = explicit_sizes(
        shape, layers=config.layers, width=config.width, heads=_heads(shape, config),
        kv_heads=config.kv_heads, mlp_width=config.mlp_width, tensor=config.tensor if budget is None else 1,
    )  # fmt: skip
    if budget is None:
        return Found(asked, parameter_count(resized(shape, asked)) / parameter_count(shape))
    name, share = budget
    multiple = config.multiple
    if name == "latency":
        multiple *= max(1, asked.mlp_width // (_TIMED_STEPS * multiple))
    over = Range(asked, _what(shape, asked, config), multiple, config.tensor, _writable)
    costs: dict[str, Cost] = {
        "params": parameter_count,
        "flops": lambda candidate: flops_per_token(candidate, length),
        "latency": _latency(model, config.batch_size, length, timed, progress),
    }
    found = search(shape, over, costs[name], share)
    explicit_sizes(shape, **found.sizes._asdict(), tensor=config.tensor)
    return found


def _heads(shape: DecoderConfig, config: Shrink) -> int | None:
    """The query heads asked for; where a width alone is, as many as can be written with it."""
    searched = "heads" in config.what
    if config.width is None or searched or config.heads is not None or config.kv_heads is not None:
        return config.heads
    now = sizes_of(shape)
    queries = now.heads // now.kv_heads
    for groups in range(now.kv_heads, 0, -1):
        tried = now._replace(width=config.width, heads=groups * queries, kv_heads=groups)
        if _writable(resized(shape, tried)):
            return tried.heads
    return None


def _what(shape: DecoderConfig, start: Sizes, config: Shrink) -> tuple[str, ...]:
    """What a budget may shrink: what was said, or what can be written and was not given a size."""
    if config.what:
        return config.what
    queries = start.heads // start.kv_heads
    alone = (
        resized(shape, start._replace(heads=groups * queries, kv_heads=groups))
        for groups in range(1, start.kv_heads)
    )
    tied = start.kv_heads > 1 and not any(map(_writable, alone))
    given = {
        "neurons": config.mlp_width is not None,
        "heads": bool(config.heads or config.kv_heads or (tied and config.width)),
        "width": config.width is not None or (tied and bool(config.heads or config.kv_heads)),
    }
    wanted = ("neurons", "heads", "width") if tied else ("neurons", "heads")
    return tuple(kind for kind in wanted if not given[kind])


def _latency(model: Model, batch: int, length: int, timed: dict[Sizes, float], progress: Told) -> Cost:
    """Seconds of a candidate's forward pass over the model's, both timed in turns; each candidate once."""

    def cost(candidate: DecoderConfig) -> float:
        sizes = sizes_of(candidate)
        if sizes == sizes_of(model.config):
            return 1.0
        if sizes not in timed:
            pair = {"model": model, "candidate": Model(candidate, init_params(candidate, seed=0))}
            speed = forward_speed(pair, batch=batch, length=length)["candidate"]
            timed[sizes] = 1 / speed.ratio
            progress(f"timed {_in_words(sizes)}: {timed[sizes]:.3f} of the latency", len(timed), 0)
        return timed[sizes]

    return cost


def _in_words(sizes: Sizes) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes._asdict().items())


def _calibration(
    model: Model, config: Shrink, tokens: Int[np.ndarray, "samples seq"] | None, cache: str | Path | None
) -> Int[np.ndarray, "microbatches rows seq"]:
    """The sequences of the text, in microbatches; refuses all that does not fit the model at once."""
    length = config.sequence_length or min(model.config.positions, _LONGEST_CALIBRATION)
    length = length if tokens is None else tokens.shape[1]
    problems = []
    if length > model.config.positions:
        problems.append(
            f"sequence_length {length} must not exceed the model's {model.config.positions} positions"
        )
    if tokens is None and model.tokenizer is None:
        problems.append("the model has no tokenizer, so no text can be read with it")
    if tokens is None and model.tokenizer is not None:
        split = training_split(config.calibration, hold_out=False)
        corpus = open_corpus(config.calibration, split, model.tokenizer, cache=cache)
        needed = max(config.samples * length, length + 1)
        if len(corpus) >= needed:
            text = Batches(corpus=corpus, batch_size=config.samples, sequence_length=length, seed=config.seed)
            tokens = np.asarray(text.batch(0).tokens)
        else:
            problems.append(
                f"{config.samples} sequences of {length} tokens need {needed:,} tokens, {config.calibration} "
                f"has {len(corpus):,}: give more text, or fewer samples"
            )
    if problems or tokens is None:
        raise InputError(f"The model cannot be shrunk so:\n{listing(problems)}")
    rows = next(size for size in range(min(len(tokens), _MICROBATCH), 0, -1) if len(tokens) % size == 0)
    return tokens.reshape(-1, rows, length)


def _history(report: ShrinkReport, text: Int[np.ndarray, "microbatches rows seq"] | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "did": "shrink",
        **asdict(report.config),
        "length": report.length,
        "calibration_tokens": 0 if text is None else text.size,
        "kept_layers": list(report.layers),
    }
    for name, shape in (("before", report.before), ("after", report.after)):
        told[name] = {
            **sizes_of(shape)._asdict(),
            "parameters": parameter_count(shape),
            "flops_per_token": flops_per_token(shape, report.length),
        }
    told["reached"] = report.reached
    told["timed"] = [{**sizes._asdict(), "latency": ratio} for sizes, ratio in report.timed.items()]
    told["output_errors"] = {
        name: {"cut": [before for before, _ in layers], "refit": [after for _, after in layers]}
        for name, layers in report.errors.items()
    }
    return {**told, "seconds": round(report.seconds, 1)}
