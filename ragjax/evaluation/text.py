"""How much text some tokens are: UTF-8 bytes and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

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
) -> TextCounts | None:
    """Counts the bytes and words of the chosen tokens of a text, exactly.

    A byte belongs to the token that writes it, a word to the token that writes its first character.
    Separators write nothing and end a word.

    Args:
      tokens: the text, from a place where no word is under way.
      chosen: which of its tokens count.
      tokenizer: a byte-level one.
      separators: token ids that stand between documents.

    Returns:
      The counts, or None where the tokenizer is not byte-level, so that the bytes of a token are
      not known.
    """
    pieces = token_bytes(tokenizer)
    if pieces is None:
        return None
    for separator in separators:
        pieces[separator] = b"\n"
    parts = [pieces[token] for token in tokens.tolist()]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    counted = np.repeat(chosen & ~np.isin(tokens, separators), lengths)

    # Bytes that are no UTF-8 become one surrogate each, and keep their place.
    text = b"".join(parts).decode("utf-8", "surrogateescape")
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    widths = 1 + (characters >= 0x80) + (characters >= 0x800) + (characters >= 0x10000)
    widths[(characters >= 0xDC80) & (characters <= 0xDCFF)] = 1
    places = np.cumsum(widths) - widths
    space = np.isin(characters, _SPACES)
    begins = ~space & np.concatenate([[True], space[:-1]])
    return TextCounts(int(counted.sum()), int(counted[places[begins]].sum()))


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes] | None:
    """The bytes each token of a byte-level tokenizer writes; None for other tokenizers.

    Byte-level BPE spells every byte as one printable character, so that a token's name tells its bytes.

    Reference: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    spelled = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    added = tokenizer.get_added_vocab()
    if not set(spelled) <= set(names):
        return None
    try:
        return [
            name.encode() if name in added else bytes(spelled[character] for character in name)
            for name in names
        ]
    except KeyError:
        return None
