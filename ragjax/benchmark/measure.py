"""Models measured in turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median
from typing import Literal

import jax

from ragjax.benchmark.bandwidth import Reader
from ragjax.benchmark.figures import figures
from ragjax.benchmark.memory import bytes_of_texts, free_memory
from ragjax.benchmark.report import Measured, Report
from ragjax.benchmark.turns import Round, take_turns
from ragjax.benchmark.weights import weight_bytes, weight_type
from ragjax.config import Bench
from ragjax.errors import InputError, listing
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel
from ragjax.run_folder import processor_name, versions

_PROMPT_TOKENS = 128
"""Of a prompt, where none were asked for and there is room."""


def bench(
    models: Sequence[tuple[str, Model | OnnxModel]],
    options: Bench | None = None,
    *,
    reader: Reader | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures how fast models read prompts and write on, one after another in every round.

    Args:
      models: names and models, in JAX on one device or in onnxruntime; the first is what the others are
        compared with.
      options: batches, tokens, rounds.
      reader: reads memory; none: a large one.
      progress: called with a line after each round.

    Raises:
      InputError: there is no model, or some have too few positions or too little memory; names them all.
    """
    options = _fitting(models, options or Bench())
    _check(models, options)
    reader, rounds = reader or Reader(), []
    opened = [model for _, model in models]
    for each in take_turns(opened, options, reader=reader):
        rounds.append(each)
        progress(f"round {len(rounds)} of {options.rounds}: {_speeds(each, options)}")
    measured = []
    for number, (name, model) in enumerate(models):
        weights = weight_bytes(model)
        by_batch = {batch: figures(rounds, number, batch, weights, options) for batch in options.batch}
        engine: Literal["jax", "onnx"] = "onnx" if isinstance(model, OnnxModel) else "jax"
        measured.append(Measured(name, engine, weight_type(model), model.parameters, by_batch))
    device = jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else f"{device.platform}: {device.device_kind}"
    return Report(
        machine=f"{processor_name()}, {os.cpu_count()} cores; JAX on {kind}",
        bandwidth_bytes_per_second=median(each.bandwidth for each in rounds),
        options=options,
        models=tuple(measured),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions("onnxruntime") if any(one.engine == "onnx" for one in measured) else versions(),
    )


def _speeds(of: Round, options: Bench) -> str:
    """How fast each model wrote in a round."""
    told = []
    for batch, turns in of.turns.items():
        each = ", ".join(f"{batch * (options.new_tokens - 1) / turn.rest:,.0f}" for turn in turns)
        told.append(f"batch {batch} {each}")
    return f"{'; '.join(told)} tokens/s"


def _fitting(models: Sequence[tuple[str, Model | OnnxModel]], options: Bench) -> Bench:
    """The options with as long prompts as were asked for, or as there is room for."""
    if options.prompt_tokens or not models:
        return options
    room = min(model.config.positions for _, model in models) - options.new_tokens
    return replace(options, prompt_tokens=max(1, min(_PROMPT_TOKENS, room)))


def _check(models: Sequence[tuple[str, Model | OnnxModel]], options: Bench) -> None:
    if not models:
        raise InputError("There is nothing to measure: give at least one model.")
    asked = options.prompt_tokens + options.new_tokens
    short = [
        f"{name} has {model.config.positions} positions"
        for name, model in models
        if model.config.positions < asked
    ]
    if short:
        raise InputError(
            f"prompt_tokens {options.prompt_tokens} and new_tokens {options.new_tokens} make {asked}, which "
            f"not every model can hold; ask for fewer:\n{listing(short)}"
        )
    batch, large = max(options.batch), []
    for name, model in models:
        needed, free = bytes_of_texts(model, batch, asked), free_memory(model)
        if free is not None and needed > free:
            large.append(
                f"{name} needs {needed / 1e9:,.1f} GB for them, of {free / 1e9:,.1f} GB that are free"
            )
    if large:
        raise InputError(
            f"{batch} texts at once do not fit into memory; ask for a smaller batch or fewer tokens:\n"
            f"{listing(large)}"
        )
