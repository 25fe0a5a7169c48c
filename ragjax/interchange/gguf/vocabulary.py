"""The tokens in a GGUF file, in the order of their ids."""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from typing import Any, NamedTuple

from ragjax.errors import InputError


class Kind(IntEnum):
    """What a token is, by the number in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary(NamedTuple):
    """Tokens and what each is."""

    tokens: list[str]
    kinds: list[int]

    def ids(self) -> dict[str, int]:
        """From token to id, but for ids that no token has."""
        return {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind != Kind.UNUSED or token != _padding(i)
        }

    def of_kind(self, *kinds: Kind) -> list[str]:
        """The tokens that are of some kinds."""
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


def read_vocabulary(metadata: dict[str, Any]) -> Vocabulary:
    """The tokens of a file.

    Raises:
      InputError: they are missing, there twice, or of no kind.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError("The GGUF file's metadata: tokenizer.ggml.tokens must be a list of tokens.")
    kinds = metadata.get("tokenizer.ggml.token_type", [int(Kind.NORMAL)] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise InputError(
            f"The GGUF file's metadata: tokenizer.ggml.token_type must be a list of {len(tokens)} numbers."
        )
    if len(set(tokens)) < len(tokens):
        twice = [token for token, count in Counter(tokens).most_common(5) if count > 1]
        raise InputError(f"The GGUF file's metadata: tokenizer.ggml.tokens has tokens twice, as {twice}.")
    return Vocabulary(tokens, kinds)


def write_vocabulary(ids: dict[str, int], kinds: dict[str, Kind], size: int) -> Vocabulary:
    """All ids below `size` in order; those that no token has are filled up.

    Args:
      ids: from token to id.
      kinds: what a token is, where it is not normal.
      size: tokens the model knows.
    """
    by_id = {i: token for token, i in ids.items()}
    tokens = [by_id.get(i, _padding(i)) for i in range(size)]
    return Vocabulary(
        tokens,
        [int(kinds.get(token, Kind.NORMAL) if i in by_id else Kind.UNUSED) for i, token in enumerate(tokens)],
    )


def _padding(i: int) -> str:
    return f"[PAD{i}]"
