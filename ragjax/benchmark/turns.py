"""Models take turns: a round is one turn of each, and one look at how fast memory is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ragjax.benchmark.bandwidth import Reader
from ragjax.config import Bench, Decoding
from ragjax.generation.continuation import writer_for
from ragjax.generation.request import request
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel

_REST = 0.02
"""Seconds between turns: threads that still spin for the one before that go to sleep."""
_READS = 3


class Turn(NamedTuple):
    """Seconds of a model that continues a batch of prompts."""

    first: float
    """Until the first new token of each is on the host."""
    rest: float
    """For all that follow."""


class Round(NamedTuple):
    """What was measured while the machine was about the same."""

    bandwidth: float
    """Bytes of memory read in a second."""
    turns: dict[int, tuple[Turn, ...]]
    """Of all models in their order, by the number of prompts at once."""


def take_turns(
    models: Sequence[Model | OnnxModel],
    options: Bench,
    *,
    reader: Reader,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Round]:
    """Times models one after another, forwards in one round and backwards in the next.

    Every model gets the same prompts of random tokens, which all of them have, writes greedily, and ends no
    text early. It has a turn of every batch beforehand that is not timed, in which its programs are compiled.

    Args:
      models: with positions enough.
      options: batches, tokens, rounds.
      reader: reads memory.
      clock: seconds.
    """
    vocabulary = min(model.config.vocab_size for model in models)
    shape = (max(options.batch), options.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, vocabulary, shape)
    for model in models:
        for batch in options.batch:
            _take_turn(model, prompts[:batch], options.new_tokens, clock)
    for number in range(options.rounds):
        order = list(range(len(models)))[:: -1 if number % 2 else 1]
        turns = {}
        began = clock()
        for _ in range(_READS):
            reader.read()
        bandwidth = _READS * reader.bytes / (clock() - began)
        for batch in options.batch:
            taken = {}
            for index in order:
                time.sleep(_REST)
                taken[index] = _take_turn(models[index], prompts[:batch], options.new_tokens, clock)
            turns[batch] = tuple(taken[index] for index in range(len(models)))
        yield Round(bandwidth, turns)


def _take_turn(
    model: Model | OnnxModel,
    prompts: Int[np.ndarray, "batch length"],
    new_tokens: int,
    clock: Callable[[], float],
) -> Turn:
    options = Decoding(max_new_tokens=new_tokens, stop_at_eos=False)
    asked = request(model, prompts.tolist(), options, None)
    began = clock()
    writer = writer_for(model, asked)
    writer.write(1)
    first = clock()
    writer.write(new_tokens)
    return Turn(first - began, clock() - first)
