"""The sliding windows over a long text, and which tokens each of them scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

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


def scored_tokens(windows: Windows) -> Bool[np.ndarray, " tokens"]:
    """True for every token of the stream that some window scores."""
    scored = np.zeros(windows.end[-1], bool)
    for first, end in zip(windows.first, windows.end, strict=True):
        scored[first:end] = True
    return scored
