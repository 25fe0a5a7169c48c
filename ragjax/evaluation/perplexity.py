"""Perplexity of a text by sliding windows, and of the completions of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ragjax.distillation.vocabulary import Head, vocabulary_loss
from ragjax.errors import InputError
from ragjax.evaluation.windows import Windows, sliding_windows
from ragjax.model import Model
from ragjax.models.decoder import Params, output_table
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder
from ragjax.parallel.hosts import global_array
from ragjax.parallel.mesh import batch_shards


def exp(nats: float) -> float:
    """e to the power of `nats`; infinite where that is beyond a float."""
    return math.exp(nats) if not nats > 709 else math.inf


class NegativeLogLikelihood(NamedTuple):
    """-log p of the scored tokens, in nats."""

    total_nats: float
    """Sum over all scored tokens."""
    tokens: int
    """Scored tokens."""
    text_nats: float
    """Sum over the scored tokens that are text, separators left out."""

    @property
    def perplexity(self) -> float:
        """exp of the mean over scored tokens."""
        return exp(self.total_nats / self.tokens)


class _Batch(NamedTuple):
    tokens: Int[np.ndarray | Array, "batch length"]
    weights: Float[np.ndarray | Array, "2 batch length"]
    """1 where the token after a position is scored; where it is scored and is text."""


def perplexity(
    model: Model,
    tokens: Int[np.ndarray, " n"],
    *,
    sequence_length: int,
    stride: int,
    batch_size: int,
    max_tokens: int | None = None,
    separators: Sequence[int] = (),
    mesh: jax.sharding.Mesh | None = None,
) -> NegativeLogLikelihood:
    """Scores a stream of tokens with windows that slide over it.

    Which tokens are scored, and with what before them, is Hugging Face's guide's; see
    `sliding_windows`. Every scored token counts alike. (The guide's own loop weighs a window of k
    scored tokens by k - 1, also where all k were scored; the two agree where stride equals length,
    and to about 1 / stride of the spread between windows elsewhere.)

    Args:
      model: its positions bound the window.
      tokens: the whole text, documents one after another; a memory map will do.
      sequence_length: tokens in a window.
      stride: tokens the window moves.
      batch_size: windows computed at once, rounded up to what the mesh can split.
      max_tokens: score at most this many tokens, from the start; none: all.
      separators: token ids that stand between documents and are no text.
      mesh: devices over which the windows are split, where the parameters lie on a mesh; none: one device.

    Raises:
      InputError: a window longer than the model's positions, or one `sliding_windows` refuses.

    Reference: https://huggingface.co/docs/transformers/perplexity
    """
    check_length(model, sequence_length)
    if max_tokens is not None:
        tokens = tokens[: max_tokens + 1]
    windows = sliding_windows(len(tokens), sequence_length=sequence_length, stride=stride)
    return score(model, tokens, windows, batch_size=batch_size, separators=separators, mesh=mesh)


def check_length(model: Model, sequence_length: int) -> None:
    """Refuses windows that are longer than the model's positions."""
    if sequence_length > model.config.positions:
        raise InputError(
            f"sequence_length must not exceed the model's {model.config.positions} positions, "
            f"found {sequence_length}."
        )


def score(
    model: Model,
    tokens: Int[np.ndarray, " n"],
    windows: Windows,
    *,
    batch_size: int,
    separators: Sequence[int] = (),
    mesh: jax.sharding.Mesh | None = None,
) -> NegativeLogLikelihood:
    """Scores what some windows score.

    Args:
      model: has positions for the longest window.
      tokens: of the corpus that the windows are of; a memory map will do.
      windows: what is read, and what is scored of it.
      batch_size: as in `perplexity`.
      separators: as in `perplexity`.
      mesh: as in `perplexity`.
    """
    shards = 1 if mesh is None else batch_shards(mesh)
    sums = []
    for group, length in _by_length(windows, batch_size):
        rows = min(batch_size, len(group.begin))
        rows = -(-rows // shards) * shards
        for batch in _batches(tokens, group, rows, length, separators):
            if mesh is None:
                sums.append(_nats(model.params, batch, config=model.config, shards=shards))
            else:
                with jax.set_mesh(mesh):
                    sums.append(_nats(model.params, _place(batch, mesh), config=model.config, shards=shards))
    # Fetched when all are under way: the device never waits for the host.
    total, text = np.asarray(jax.device_get(sums), np.float64).sum(0)
    return NegativeLogLikelihood(float(total), int((windows.end - windows.first).sum()), float(text))


@partial(jax.jit, static_argnames=("config", "shards"))
def _nats(params: Params, batch: _Batch, *, config: DecoderConfig, shards: int) -> Float[Array, "2"]:
    hidden = run_decoder(config, params, batch.tokens).hidden
    targets = jnp.roll(batch.tokens, -1, axis=1)

    def weighted_sum(weights):
        student = Head(hidden, output_table(params))
        return vocabulary_loss(
            student,
            targets,
            weights,
            vocab_size=config.vocab_size,
            coefficients={"cross_entropy": 1.0},
            shards=shards,
        )[0]

    return jax.vmap(weighted_sum)(batch.weights)


def _by_length(windows: Windows, batch_size: int) -> Iterator[tuple[Windows, int]]:
    """Windows of like length together, with the length that they are filled up to.

    A length has a program of its own; fewer windows than a batch are not worth one.
    """
    size = windows.end - windows.begin
    length = int(size.max())
    while len(size):
        short = size <= length // 2
        if short.sum() < batch_size:
            short[:] = False
        if not short.all():
            yield Windows(*(x[~short] for x in windows)), length
        windows, size, length = Windows(*(x[short] for x in windows)), size[short], length // 2


def _batches(
    tokens: np.ndarray, windows: Windows, rows: int, length: int, separators: Sequence[int]
) -> Iterator[_Batch]:
    """Windows in batches of one shape; what is missing in a row or a batch has weight 0."""
    offsets = np.arange(length)
    for start in range(0, len(windows.begin), rows):
        begin, first, end = (x[start : start + rows, None] for x in windows)
        places = begin + offsets
        read = np.where(places < end, tokens[np.minimum(places, len(tokens) - 1)], 0)
        following = np.minimum(places + 1, len(tokens) - 1)
        scored = (first <= places + 1) & (places + 1 < end)
        text = scored & ~np.isin(tokens[following], separators)
        fill = ((0, rows - len(begin)), (0, 0))
        yield _Batch(
            np.pad(read, fill).astype(np.int32),
            np.stack([np.pad(scored, fill), np.pad(text, fill)]).astype(np.float32),
        )


def _place(batch: _Batch, mesh: jax.sharding.Mesh) -> _Batch:
    return _Batch(
        global_array(batch.tokens.shape, lambda rows: np.asarray(batch.tokens)[rows], mesh),
        global_array(batch.weights.shape, lambda rows: np.asarray(batch.weights)[:, rows], mesh, axis=1),
    )
