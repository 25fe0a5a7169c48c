"""Text from tokens that come one by one, in whole characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Turns tokens into text as they come, and holds back what may be the beginning of a longer character.

    Special tokens write nothing. Bytes that can never be UTF-8 become U+FFFD when what follows
    shows it; a character still unfinished at the end is left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, prompt: Sequence[int] = ()):
        """Begins after the token ids of `prompt`, for tokenizers whose text depends on what stands before."""
        self._tokenizer = tokenizer
        # Decoded together with the last piece, which is as far back as a token's text looks; and the prompt
        # whole, since a tokenizer that spells bytes by tokens may read none of a run of them that is cut.
        self._context, self._fresh = list(prompt), list[int]()
        if self._decoded(self._context).endswith(_UNFINISHED):
            self._begin_within_a_character()

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        self._fresh.append(token)
        piece = self._added()
        if not piece or piece.endswith(_UNFINISHED):
            return ""
        self._context, self._fresh = self._fresh, []
        return piece

    def finish(self) -> str:
        """What was held back and is text, now that nothing follows."""
        return self._added().rstrip(_UNFINISHED) if self._fresh else ""

    def _begin_within_a_character(self) -> None:
        """Counts the bytes of a character that the prompt does not complete to what follows."""
        for count in range(1, min(4, 1 + len(self._context))):
            before = self._context[:-count]
            if not self._decoded(before).endswith(_UNFINISHED):
                self._context, self._fresh = before, self._context[-count:]
                return

    def _added(self) -> str:
        """What the fresh tokens add to the text of those before."""
        return self._decoded(self._context + self._fresh)[len(self._decoded(self._context)) :]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def text_pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], *, prompt: Sequence[int] = ()
) -> Iterator[str]:
    """Yields the text of `tokens` as they come; see `Detokenizer`.

    Args:
      tokenizer: decodes.
      tokens: new token ids.
      prompt: token ids before them.
    """
    writer = Detokenizer(tokenizer, prompt=prompt)
    for token in tokens:
        if piece := writer.push(token):
            yield piece
    if rest := writer.finish():
        yield rest
