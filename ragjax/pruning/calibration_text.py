"""The text by which a model is pruned or shrunk: sequences of one length, drawn from a source."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int

from ragjax.data import Batches, open_corpus, training_split
from ragjax.model import Model


class Draw(Protocol):
    """Which text: a config with these fields."""

    @property
    def calibration(self) -> str:
        """Source URI."""

    @property
    def samples(self) -> int:
        """Sequences."""

    @property
    def seed(self) -> int:
        """Seed of the choice of sequences."""


def drawn_text(
    model: Model,
    config: Draw,
    length: int,
    *,
    hold_out: bool = False,
    cache: str | Path | None = None,
) -> tuple[Int[np.ndarray, "samples seq"] | None, list[str]]:
    """The sequences, or none, and why there are none.

    Args:
      model: the model that is to read them.
      config: which text.
      length: tokens in a sequence.
      hold_out: whether documents are left for measuring; a bare builtin:python always leaves them.
      cache: folder of the token cache; none: RAGJAX_CACHE, or ~/.cache/ragjax.
    """
    if model.tokenizer is None:
        return None, ["the model has no tokenizer, and no text can be read without: save one with it"]
    split = training_split(config.calibration, hold_out=hold_out)
    corpus = open_corpus(config.calibration, split, model.tokenizer, cache=cache).as_text
    needed = config.samples * length + 1
    if len(corpus) < needed:
        return None, [
            f"{config.samples} sequences of {length} tokens need {needed:,} tokens, {config.calibration} has "
            f"{len(corpus):,}: give more text, fewer samples or shorter ones"
        ]
    text = Batches(corpus=corpus, batch_size=config.samples, sequence_length=length, seed=config.seed)
    return np.asarray(text.batch(0).tokens), []


def misfits(model: Model, samples: int, length: int, shards: int) -> list[str]:
    """Why a model cannot read so many sequences of a length on so many devices.

    Args:
      model: the model.
      samples: sequences.
      length: tokens in each.
      shards: devices that share the sequences.
    """
    found = []
    if samples % shards:
        found.append(f"samples {samples} must be divisible by mesh.data x mesh.fsdp = {shards}")
    if length > model.config.positions:
        found.append(
            f"sequence_length {length} must not exceed the model's {model.config.positions} positions"
        )
    return found


def in_microbatches(
    tokens: Int[np.ndarray, "samples seq"], most: int, shards: int
) -> Int[np.ndarray, "microbatches rows seq"]:
    """The sequences in microbatches that are as large as divides them.

    Args:
      tokens: as many sequences as `shards` divides.
      most: sequences on the devices at once, or one for each of `shards`, if that is more.
      shards: devices that share the sequences.
    """
    each = len(tokens) // shards
    rows = next(size for size in range(min(each, max(1, most // shards)), 0, -1) if each % size == 0)
    return tokens.reshape(-1, shards * rows, tokens.shape[-1])
