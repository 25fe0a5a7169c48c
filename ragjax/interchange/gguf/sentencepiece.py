"""SentencePiece's BPE in GGUF (`tokenizer.ggml.model` "llama"): tokens are made in the order of scores."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ragjax.errors import InputError
from ragjax.interchange.gguf.vocabulary import Kind, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
"""How a token spells a space."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def is_byte(token: str) -> bool:
    """Whether a token stands for a byte that no other token has."""
    return _BYTE.fullmatch(token) is not None


def read_sentencepiece(metadata: dict[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a file, without its special tokens.

    Raises:
      InputError: it has no scores.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise InputError(
            "The GGUF file's metadata: tokenizer.ggml.scores must be a list of "
            f"{len(vocabulary.tokens)} numbers."
        )
    unknown = vocabulary.of_kind(Kind.UNKNOWN)
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids(),
            merges=merges_from(vocabulary, scores),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=bool(vocabulary.of_kind(Kind.BYTE)),
        )
    )
    spaced = normalizers.Replace(" ", SPACE)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaced])
        made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    else:
        made.normalizer = spaced
        made.decoder = decoders.Sequence(back)
    return made


def merges_from(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """The merges that scores stand for: every way of making a token of two, the best token first."""
    ids = vocabulary.ids()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    merges = []
    for i in order:
        token = vocabulary.tokens[i]
        if vocabulary.kinds[i] in (Kind.NORMAL, Kind.USER_DEFINED):
            halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            made = [(a, b) for a, b in halves if a in ids and b in ids]
            merges += sorted(made, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def write_sentencepiece(
    tokenizer: Tokenizer, vocabulary: Vocabulary, merges: list[tuple[str, str]]
) -> dict[str, Any]:
    """The metadata of a tokenizer, besides its tokens.

    Args:
      tokenizer: a BPE over characters, with bytes for those that no token has.
      vocabulary: its tokens.
      merges: its merges.

    Raises:
      InputError: its merges are not what scores of tokens say.
    """
    made = list(dict.fromkeys(a + b for a, b in merges))
    rank = {token: i for i, token in enumerate(made)}
    later = len(made)
    scores = [
        -float(rank.get(token, later)) if kind in (Kind.NORMAL, Kind.USER_DEFINED) else 0.0
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ]
    in_order = [token for token, _ in groupby(a + b for a, b in merges)] == made
    if not in_order or set(merges_from(vocabulary, scores)) != set(merges):
        raise InputError(
            "The tokenizer's merges are not those of a SentencePiece model, in which a token can be made of "
            "any two that spell it: GGUF cannot hold it. Export the model in another format."
        )
    spaced = tokenizer.encode("a", add_special_tokens=False).ids
    bare = tokenizer.token_to_id("a")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": spaced != [bare],
    }
