"""Forward speed of models, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ragjax.errors import InputError
from ragjax.model import Model
from ragjax.models.decoder import Params, logits
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder


class Speed(NamedTuple):
    """How fast a model reads."""

    tokens_per_second: float
    """Median over rounds."""
    ratio: float
    """Its speed over that of the first model, paired round by round; the median of the rounds."""
    rounds: tuple[float, ...]
    """Tokens per second in each round."""


def forward_speed(
    models: Mapping[str, Model], *, batch: int, length: int, rounds: int = 5
) -> dict[str, Speed]:
    """Times the forward pass of several models, one after another in every round.

    A forward pass reads random tokens and finds the likeliest next one at every position. Whatever
    slows the machine down for a while slows all models of a round alike, so the ratio is steadier
    than the speeds. Compilation and a first pass are not timed.

    Args:
      models: by name; the first is what the others are compared with.
      batch: sequences at once.
      length: tokens in each.
      rounds: times each model is measured.

    Raises:
      InputError: a sequence longer than a model's positions, or no round.
    """
    short = [f"{name} {m.config.positions}" for name, m in models.items() if m.config.positions < length]
    if short or min(batch, length, rounds) < 1:
        raise InputError(
            "Speed needs at least one sequence, token and round, and a position for every token; found "
            f"batch {batch}, length {length}, rounds {rounds}"
            + (f", and only these positions: {', '.join(short)}." if short else ".")
        )
    smallest = min((model.config.vocab_size for model in models.values()), default=1)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, smallest, (batch, length)), jnp.int32)

    for model in models.values():
        for _ in range(2):
            _next_tokens(model.params, tokens, config=model.config).block_until_ready()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds):
        order = list(models) if turn % 2 == 0 else list(models)[::-1]
        for name in order:
            begin = time.perf_counter()
            _next_tokens(models[name].params, tokens, config=models[name].config).block_until_ready()
            seconds[name].append(time.perf_counter() - begin)
    return summarize(seconds, tokens=batch * length)


def summarize(seconds: Mapping[str, list[float]], *, tokens: int) -> dict[str, Speed]:
    """Speeds from the seconds each model took for `tokens` in every round; the first is the reference."""
    reference = next(iter(seconds.values()), [])
    return {
        name: Speed(
            tokens / median(taken),
            median(first / own for first, own in zip(reference, taken, strict=True)),
            tuple(tokens / own for own in taken),
        )
        for name, taken in seconds.items()
    }


@partial(jax.jit, static_argnames="config")
def _next_tokens(
    params: Params, tokens: Int[Array, "batch seq"], *, config: DecoderConfig
) -> Int[Array, "batch seq"]:
    hidden = run_decoder(config, params, tokens).hidden
    # As many tokens at a time as a sequence has, so that a large vocabulary's scores are never held for
    # the whole batch; of every sequence the same ones, since these may lie on different devices.
    rows = max(1, hidden.shape[1] // hidden.shape[0])
    by_place = jax.lax.map(
        lambda row: logits(params, row, config).argmax(-1), hidden.swapaxes(0, 1), batch_size=rows
    )
    return by_place.swapaxes(0, 1)
