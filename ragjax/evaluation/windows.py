"""The windows in which a text or pairs are read, and which tokens each of them scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ragjax.data.corpus import Corpus
from ragjax.errors import InputError


class Windows(NamedTuple):
    """Half-open ranges of a token stream: a window reads [begin, end) and scores [first, end)."""

    begin: Int[np.ndarray, " windows"]
    """First token read."""
    first: Int[np.ndarray, " windows"]
    """First token scored."""
    end: Int[np.ndarray, " windows"]
    """Token after the last one."""


def sliding_windows(tokens: int, *, sequence_length: int, stride: int) -> Windows:
    """Cuts a stream into windows as Hugging Face's guide to perplexity does.

    Windows start every `stride` tokens and end with the stream. Each scores the tokens no window
    before it has read; a window's own first token has nothing before it and is never scored. With
    a stride below the length that is the first token of the stream alone, with a stride equal to
    it the first token of every window.

    Args:
      tokens: length of the stream.
      sequence_length: tokens in a window.
      stride: tokens from one window's start to the next one's.

    Raises:
      InputError: a window of fewer than 2 tokens, a stride that is not within 1 ... sequence_length,
        or a stream too short to score anything.

    Reference: https://huggingface.co/docs/transformers/perplexity
    """
    if sequence_length < 2 or not 1 <= stride <= sequence_length:
        raise InputError(
            "A window must hold at least 2 tokens and the stride lie between 1 and its length, "
            f"found sequence_length {sequence_length} and stride {stride}."
        )
    if tokens < 2:
        raise InputError(
            f"Perplexity needs at least 2 tokens, found {tokens}: give a longer text or a larger max_tokens."
        )
    count = 1 + max(0, -(-(tokens - sequence_length) // stride))
    begin = np.arange(count, dtype=np.int64) * stride
    end = np.minimum(begin + sequence_length, tokens)
    read_before = np.concatenate([[0], end[:-1]])
    return Windows(begin, np.maximum(read_before, begin + 1), end)


def pair_windows(corpus: Corpus, *, sequence_length: int) -> Windows:
    """A window for each pair, which scores its completion.

    It reads the pair from the beginning of its prompt, as far as there is room. A pair whose prompt leaves
    none is left out.

    Args:
      corpus: a corpus of pairs.
      sequence_length: tokens in a window at most.

    Raises:
      InputError: no pair is left.
    """
    first = np.asarray(corpus.completions)
    fits = first - corpus.starts < sequence_length
    if not fits.any():
        raise InputError(
            f"None of {corpus.documents} prompts leaves room for a token in windows of {sequence_length}: "
            "give a larger sequence_length, or shorter prompts."
        )
    begin = np.asarray(corpus.starts)[fits]
    return Windows(begin, first[fits], np.minimum(corpus.ends[fits], begin + sequence_length))


def corpus_windows(
    corpus: Corpus, *, sequence_length: int, stride: int, max_tokens: int | None = None
) -> Windows:
    """The windows over a corpus, of texts or of pairs.

    Args:
      corpus: the tokens.
      sequence_length: tokens in a window at most.
      stride: tokens from one window of a text to the next; a pair is a window of its own.
      max_tokens: tokens that are scored at most, from the start; none: all.

    Raises:
      InputError: as `sliding_windows` and `pair_windows`.
    """
    if corpus.completions is None:
        tokens = len(corpus) if max_tokens is None else min(len(corpus), max_tokens + 1)
        return sliding_windows(tokens, sequence_length=sequence_length, stride=stride)
    windows = pair_windows(corpus, sequence_length=sequence_length)
    if max_tokens is None:
        return windows
    before = np.cumsum(windows.end - windows.first) - (windows.end - windows.first)
    begin, first, end = (x[before < max_tokens] for x in windows)
    return Windows(begin, first, np.minimum(end, first + max_tokens - before[before < max_tokens]))


def scored_tokens(windows: Windows) -> Bool[np.ndarray, " tokens"]:
    """True for every token that some window scores, up to the last one read."""
    scored = np.zeros(windows.end.max(), bool)
    for first, end in zip(windows.first, windows.end, strict=True):
        scored[first:end] = True
    return scored
