"""Sequences of prompts and completions: what of a corpus of pairs each of them reads, and what counts."""

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


def pair_spans(corpus: Corpus, sequence_length: int, *, pack: bool = False) -> Spans:
    """The sequences of a corpus of pairs, in their order.

    No prompt is ever cut, so that each token of a completion is learned with all that stands before it: a
    pair that is too long loses the end of its completion, and one whose prompt leaves no room is left out.

    Args:
      corpus: the pairs.
      sequence_length: tokens in a sequence.
      pack: as many pairs in a sequence as fit one after another; else one.

    Raises:
      InputError: all prompts are too long.
    """
    fits = _fit(corpus, sequence_length)
    if not fits.any():
        raise InputError(
            f"the prompts are too long: none of {corpus.documents} leaves room for a token in a sequence of "
            f"{sequence_length}. Set data.sequence_length to more, or shorten them"
        )
    ends = corpus.ends
    first = _first_of_each(corpus, ends, fits, sequence_length) if pack else np.flatnonzero(fits)
    begin = np.asarray(corpus.starts)[first]
    most = begin + sequence_length + 1
    last = np.maximum(first, np.searchsorted(ends, most, side="right") - 1) if pack else first
    return Spans(begin, np.minimum(ends[last], most))


def completion_tokens(corpus: Corpus, sequence_length: int) -> int:
    """How many targets count in all the sequences of a corpus of pairs."""
    last = np.minimum(corpus.ends, corpus.starts + sequence_length + 1)
    return int((last - corpus.completions)[_fit(corpus, sequence_length)].sum())


def longest_prompt(corpus: Corpus, sequence_length: int) -> int:
    """Tokens of the longest prompt in the sequences of a corpus of pairs."""
    return int((corpus.completions - corpus.starts)[_fit(corpus, sequence_length)].max())


def described(corpus: Corpus, sequence_length: int, *, pack: bool = False) -> str:
    """What becomes of the pairs of a corpus, as a line for people."""
    fits = _fit(corpus, sequence_length)
    spans = pair_spans(corpus, sequence_length, pack=pack)
    full = (spans.end - spans.begin - 1).sum() / (len(spans.begin) * sequence_length)
    cut = int((fits & (corpus.ends - corpus.starts > sequence_length + 1)).sum())
    left_out = int((~fits).sum())
    parts = [f"pairs: {int(fits.sum()):,}, sequences: {len(spans.begin):,}, filled to {full:.0%}"]
    parts += [f"completions cut at {sequence_length} tokens: {cut:,}"] if cut else []
    parts += [f"left out, as the prompt leaves no room: {left_out:,}"] if left_out else []
    return "; ".join(parts)


def in_completion(corpus: Corpus, place: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Whether each place of a corpus of pairs belongs to a completion, its end-of-text token included."""
    assert corpus.completions is not None
    pair = np.searchsorted(corpus.starts, place, side="right") - 1
    return place >= corpus.completions[pair]


def _first_of_each(corpus: Corpus, ends: np.ndarray, fits: np.ndarray, sequence_length: int) -> np.ndarray:
    """The first pair of each sequence that holds as many as fit."""
    found, pair = [], 0
    while pair < corpus.documents:
        if fits[pair]:
            found.append(pair)
        after = np.searchsorted(ends, corpus.starts[pair] + sequence_length + 1, side="right")
        pair = max(pair + 1, int(after))
    return np.array(found)


def _fit(corpus: Corpus, sequence_length: int) -> Bool[np.ndarray, " pairs"]:
    return corpus.completions - corpus.starts <= sequence_length
