"""How much text some tokens are: UTF-8 bytes and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ragjax.data.token_bytes import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What `str.split` splits at.
_SPACES = np.array([ord(c) for c in map(chr, range(0x3001)) if c.isspace()], np.uint32)


class TextCounts(NamedTuple):
    """The size of a text."""

    bytes: int
    """Bytes of its UTF-8."""
    words: int
    """Words as `str.split` finds them."""


def count_text(
    tokens: Int[np.ndarray, " n"],
    chosen: Bool[np.ndarray, " n"],
    tokenizer: PreTrainedTokenizerBase,
    separators: Sequence[int],
    starts: Int[np.ndarray, " texts"] | None = None,
) -> TextCounts | None:
    """Counts the bytes and words of the chosen tokens of a text, exactly.

    A byte belongs to the token that writes it, a word to the token that writes its first character.
    Separators write nothing and end a word. Where the tokenizer puts a space before every text, the one
    that begins a document is no part of it.

    Args:
      tokens: the text, from the beginning of a document.
      chosen: which of its tokens count.
      tokenizer: one whose tokens spell their bytes.
      separators: token ids that stand between documents.
      starts: places at which a word begins whatever stands before, as at those of completions; none: nowhere.

    Returns:
      The counts, or None where the bytes of a token are not known.
    """
    pieces = token_bytes(tokenizer)
    if pieces is None:
        return None
    for separator in separators:
        pieces[separator] = b"\n"
    parts = [pieces[token] for token in tokens.tolist()]
    if _puts_a_space_first(tokenizer, pieces):
        between = np.isin(tokens, separators)
        for first in np.flatnonzero(~between & np.concatenate([[True], between[:-1]])):
            parts[first] = parts[first].removeprefix(b" ")
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    counted = np.repeat(chosen & ~np.isin(tokens, separators), lengths)

    # Bytes that are no UTF-8 become one surrogate each, and keep their place.
    text = b"".join(parts).decode("utf-8", "surrogateescape")
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    widths = 1 + (characters >= 0x80) + (characters >= 0x800) + (characters >= 0x10000)
    widths[(characters >= 0xDC80) & (characters <= 0xDCFF)] = 1
    places = np.cumsum(widths) - widths
    space = np.isin(characters, _SPACES)
    begins = np.concatenate([[True], space[:-1]])
    if starts is not None:
        begins |= np.isin(places, (np.cumsum(lengths) - lengths)[starts])
    begins &= ~space
    return TextCounts(int(counted.sum()), int(counted[places[begins]].sum()))


def _puts_a_space_first(tokenizer: PreTrainedTokenizerBase, pieces: list[bytes]) -> bool:
    """Whether a text without a leading space is encoded as if it had one."""
    return b"".join(pieces[token] for token in tokenizer.encode("a", add_special_tokens=False)) == b" a"
