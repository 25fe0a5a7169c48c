"""A trained model in, one with fewer neurons, heads, features and layers out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from ragjax.config import Shrink
from ragjax.errors import InputError, listing
from ragjax.model import Model, check_floats
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import batch_shards
from ragjax.pruning.calibration_text import drawn_text, in_microbatches, misfits
from ragjax.shrinking.chosen_sizes import budget_of, chosen_sizes
from ragjax.shrinking.latency import latency
from ragjax.shrinking.written import as_saved
from ragjax.sparsity.calibrated.calibration import Calibration
from ragjax.sparsity.shrink import (
    IMPORTANCE,
    Sizes,
    Subject,
    cut,
    cut_and_refit,
    flops_per_token,
    parameter_count,
    resized,
    select,
    sizes_of,
)
from ragjax.sparsity.shrink.cut import Errors

_LONGEST_CALIBRATION, _LONGEST = 256, 512
"""Tokens in a sequence where nobody says how many: of the calibration text; of what is counted or timed."""
_MICROBATCH = 8
"""Sequences on the devices at once, at most, or one for each that shares the data."""

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
    mesh: Mesh | None = None,
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
      mesh: devices that share the work, and over which the smaller model is split: its heads and neurons stay
        divisible by mesh.tensor; none: JAX's default device.
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
    check_floats(model)
    began = time.monotonic()
    length = min(model.config.positions, config.length or _LONGEST)
    if config.length is not None and config.length > model.config.positions:
        raise InputError(
            f"length {config.length} must not exceed the model's {model.config.positions} positions."
        )
    reads = config.compensate or IMPORTANCE[config.importance].reads_text
    text = _calibration(model, config, tokens, mesh, cache) if reads else None
    timed: dict[Sizes, float] = {}
    budget = budget_of(config)
    cost = latency(
        model, budget.share if budget else 1, batch=config.batch_size, length=length, mesh=mesh,
        timed=timed, progress=progress,
    )  # fmt: skip
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    found = chosen_sizes(model.config, config, length=length, tensor=tensor, latency=cost)
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
        small = cut(model.config, model.params, kept, mesh)
    layers = tuple(int(layer) for layer in kept.layers)
    reached = None if budget is None else found.share
    report = ShrinkReport(
        config, model.config, small.config, layers, length, reached, timed, small.errors,
        time.monotonic() - began,
    )  # fmt: skip
    history = (*model.history, _history(report, text))
    return Shrunk(Model(small.config, small.params, model.tokenizer, history), report)


def _calibration(
    model: Model,
    config: Shrink,
    tokens: Int[np.ndarray, "samples seq"] | None,
    mesh: Mesh | None,
    cache: str | Path | None,
) -> Calibration:
    """The sequences of the text, in microbatches; refuses all that does not fit the model at once."""
    length = config.sequence_length or min(model.config.positions, _LONGEST_CALIBRATION)
    length = length if tokens is None else tokens.shape[1]
    samples = config.samples if tokens is None else len(tokens)
    shards = 1 if mesh is None else batch_shards(mesh)
    problems = misfits(model, samples, length, shards)
    if tokens is None:
        tokens, missing = drawn_text(model, config, length, cache=cache)
        problems += missing
    if problems or tokens is None:
        raise InputError(f"The model cannot be shrunk so:\n{listing(problems)}")
    return Calibration(in_microbatches(tokens, _MICROBATCH, shards), mesh)


def _history(report: ShrinkReport, text: Calibration | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "did": "shrink",
        **asdict(report.config),
        "length": report.length,
        "calibration_tokens": 0 if text is None else text.tokens.size,
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
