"""Text from tokens that come one by one, in whole characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def text_pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], *, prompt: Sequence[int] = ()
) -> Iterator[str]:
    """Yields text as tokens come, and holds back what may be the beginning of a longer character.

    Special tokens write nothing. Bytes that can never be UTF-8 become U+FFFD when what follows
    shows it; a character still unfinished at the end is left out.

    Args:
      tokenizer: decodes.
      tokens: new token ids.
      prompt: token ids before them, for tokenizers whose text depends on what stands before.
    """
    # Decoded together with the last piece, which is as far back as a token's text looks; and the prompt
    # whole, since a tokenizer that spells bytes by tokens may read none of a run of them that is cut.
    context, fresh = list(prompt), []
    for token in tokens:
        fresh.append(token)
        piece = _after(tokenizer, context, fresh)
        if piece and not piece.endswith(_UNFINISHED):
            yield piece
            context, fresh = fresh, []
    rest = _after(tokenizer, context, fresh).rstrip(_UNFINISHED)
    if rest:
        yield rest


def _after(tokenizer: PreTrainedTokenizerBase, context: list[int], fresh: list[int]) -> str:
    """What `fresh` adds to the text of `context`."""

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return decode(context + fresh)[len(decode(context)) :]
