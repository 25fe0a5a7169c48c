"""Sequences of prompt and completion: what of a corpus of pairs each of them reads, and what counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ragjax.data.corpus import Corpus
from ragjax.errors import InputError


class Spans(NamedTuple):
    """The part of a corpus that each sequence reads, its last target included."""

    begin: Int[np.ndarray, " sequences"]
    end: Int[np.ndarray, " sequences"]


class TooLong(NamedTuple):
    """Pairs that do not fit a sequence whole."""

    cut: int
    """Those whose completion ends before its end."""
    left_out: int
    """Those whose prompt alone fills it."""


def pair_spans(corpus: Corpus, sequence_length: int) -> Spans:
    """A sequence for each pair, in their order.

    No prompt is ever cut, so that each token of a completion is learned with all that stands before it: a
    pair that is too long loses the end of its completion, and one whose prompt leaves no room is left out.

    Raises:
      InputError: all prompts are too long.
    """
    fits = _fit(corpus, sequence_length)
    if not fits.any():
        raise InputError(
            f"the prompts are too long: none of {corpus.documents} leaves room for a token in a sequence of "
            f"{sequence_length}. Set data.sequence_length to more, or shorten them"
        )
    begin = np.asarray(corpus.starts)[fits]
    return Spans(begin, np.minimum(corpus.ends[fits], begin + sequence_length + 1))


def too_long(corpus: Corpus, sequence_length: int) -> TooLong:
    """How many pairs of a corpus do not fit a sequence whole; none of a corpus of texts."""
    if corpus.completions is None:
        return TooLong(0, 0)
    fits = _fit(corpus, sequence_length)
    whole = corpus.ends - corpus.starts <= sequence_length + 1
    return TooLong(int((fits & ~whole).sum()), int((~fits).sum()))


def in_completion(corpus: Corpus, place: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Whether each place of a corpus of pairs belongs to a completion, its end-of-text token included."""
    assert corpus.completions is not None
    pair = np.searchsorted(corpus.starts, place, side="right") - 1
    return place >= corpus.completions[pair]


def _fit(corpus: Corpus, sequence_length: int) -> Bool[np.ndarray, " pairs"]:
    return corpus.completions - corpus.starts <= sequence_length
