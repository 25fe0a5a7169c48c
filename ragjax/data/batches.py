"""Batches of token sequences, each a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ragjax.data.corpus import Corpus
from ragjax.data.pair_rows import Spans, completion_tokens, in_completion, pair_spans
from ragjax.data.permutation import mixed, permuted
from ragjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Array

_ORDER, _OFFSET = 0, 1


class Batch(NamedTuple):
    """Sequences and what is to be predicted after each of their tokens.

    Attributes:
      tokens: token ids.
      targets: the token that follows each one.
      weights: 1 where the target counts, 0 where it does not (padding, prompts, and the first token of
        the next document where documents are isolated).
      segments: number of the document within its sequence; none: documents see one another.
      positions: place within the document, as far as it lies in the sequence; given with `segments`.
      known: what is known beforehand of a teacher's distributions there, a tuple of arrays; none: nothing.
      factors: what the losses of each token are multiplied with, beside its weight; none: 1.
      written: 1 where the student wrote the sequences, 0 where they are text; none: they are text.
    """

    tokens: Int[Array | np.ndarray, "batch seq"]
    targets: Int[Array | np.ndarray, "batch seq"]
    weights: Float[Array | np.ndarray, "batch seq"]
    segments: Int[Array | np.ndarray, "batch seq"] | None = None
    positions: Int[Array | np.ndarray, "batch seq"] | None = None
    known: Any = None
    factors: Float[Array | np.ndarray, "batch seq"] | None = None
    written: Float[Array | np.ndarray, ""] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """The batches of a training, of which any can be made at any time on any host.

    The corpus is a ring that is cut into windows of `sequence_length`. An epoch visits each window once
    in an order of its own, and starts to cut at a place of its own, so that no token is read twice in an
    epoch and the cuts fall elsewhere in the next, unless they are fixed. What is left over, less than a
    window, is left out.

    A corpus of pairs has a window for each pair instead, from the beginning of its prompt, filled up behind
    its end; the targets in its completion count. `pair_spans` tells what becomes of pairs that are too long.
    Of packed pairs, as many as fit are in a window, each as if it were alone.

    Attributes:
      corpus: the tokens.
      batch_size: sequences in a batch, over all hosts.
      sequence_length: tokens in a sequence.
      seed: chooses the orders and the cuts.
      isolate_documents: number the documents in each sequence, so that attention can stay within one;
        pairs never see each other.
      fixed_cuts: cut at the same places in every epoch, so that a window has the same tokens in each.
      pack_pairs: put several pairs into a window.
      known: what is known beforehand of a teacher's distributions in the windows of these numbers, an
        array or a tuple of them with a row for each; for fixed cuts alone.
    """

    corpus: Corpus
    batch_size: int
    sequence_length: int
    seed: int = 0
    isolate_documents: bool = False
    fixed_cuts: bool = False
    pack_pairs: bool = False
    known: Callable[[Int[np.ndarray, " rows"]], Any] | None = None

    def __post_init__(self) -> None:
        if self._pairs is not None:
            return
        if self.pack_pairs:
            raise InputError(
                "data.pack_pairs is for pairs of prompt and completion, found texts, which share sequences "
                "anyway: leave it out"
            )
        found, needed = len(self.corpus), self.sequence_length + 1
        if found < needed:
            raise InputError(
                f"the text is too short: one sequence of {self.sequence_length} tokens and its last target "
                f"need {needed} tokens, found {found} in {self.corpus.documents} documents. Give more "
                f"text, or set data.sequence_length to at most {max(found - 1, 0)}"
            )

    @property
    def windows(self) -> int:
        """Sequences in an epoch."""
        if self._pairs is not None:
            return len(self._pairs.begin)
        return len(self.corpus) // self.sequence_length

    @property
    def tokens_per_batch(self) -> float:
        """Targets that count in a batch, in the mean over an epoch."""
        if self._pairs is not None:
            return self.batch_size * completion_tokens(self.corpus, self.sequence_length) / self.windows
        not_first = 1 - self.corpus.documents / len(self.corpus) if self.isolate_documents else 1.0
        return self.batch_size * self.sequence_length * not_first

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The batch of `step`, or some rows of it.

        Args:
          step: number of the batch, from 0.
          rows: the part of the global batch that is wanted; all parts together are the whole.
        """
        sequence = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        epoch, number = np.divmod(sequence, self.windows)
        epoch = epoch.astype(np.uint64)
        window = permuted(number, self.windows, self._key, epoch, _ORDER)
        if self.fixed_cuts:
            known = None if self.known is None else self.known(window)
            return self.at(window)._replace(known=known)
        offset = mixed(self._key, epoch, _OFFSET) % np.uint64(len(self.corpus))
        return self.at(window, offset.astype(np.int64))

    def visited(self, steps: int) -> Int[np.ndarray, " windows"]:
        """The windows that the first `steps` batches visit where the cuts are fixed, in rising order."""
        count = min(steps * self.batch_size, self.windows)
        return np.sort(permuted(np.arange(count), self.windows, self._key, np.uint64(0), _ORDER))

    @cached_property
    def _pairs(self) -> Spans | None:
        """What each window of pairs reads; none: the corpus is of texts."""
        if self.corpus.completions is None:
            return None
        return pair_spans(self.corpus, self.sequence_length, pack=self.pack_pairs)

    @property
    def _key(self) -> np.uint64:
        return np.uint64(self.seed % 2**64)

    def at(self, window: Int[np.ndarray, " rows"], offset: int | Int[np.ndarray, " rows"] = 0) -> Batch:
        """The sequences of some windows.

        Args:
          window: their numbers, from 0.
          offset: where in the corpus each one's epoch begins to cut; pairs are where they are.
        """
        if self._pairs is not None:
            return self._of_pairs(Spans(self._pairs.begin[window], self._pairs.end[window]))
        first = offset + window * self.sequence_length
        index = (first[:, None] + np.arange(self.sequence_length + 1)) % len(self.corpus)
        read = self.corpus.tokens[index].astype(np.int32)
        tokens, targets = read[:, :-1], read[:, 1:]
        weights = np.ones(tokens.shape, np.float32)
        if not self.isolate_documents:
            return Batch(tokens, targets, weights)
        begins = _begins_document(self.corpus, index)
        weights[begins[:, 1:]] = 0
        return Batch(tokens, targets, weights, *_within_documents(begins[:, :-1]))

    def _of_pairs(self, spans: Spans) -> Batch:
        place = spans.begin[:, None] + np.arange(self.sequence_length + 1)
        inside = place < spans.end[:, None]
        # What stands in the padding does not matter, as long as it is a token.
        index = np.where(inside, place, spans.begin[:, None])
        read = self.corpus.tokens[index].astype(np.int32)
        counts = inside & in_completion(self.corpus, index)
        batch = Batch(read[:, :-1], read[:, 1:], counts[:, 1:].astype(np.float32))
        if not self.pack_pairs:
            return batch
        segments, positions = _within_documents(_begins_document(self.corpus, index[:, :-1]))
        return batch._replace(segments=segments, positions=positions)


def _begins_document(corpus: Corpus, index: np.ndarray) -> np.ndarray:
    document = np.searchsorted(corpus.starts, index, side="right") - 1
    return corpus.starts[document] == index


def _within_documents(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the document, and place within it, for each place of each sequence."""
    begins = begins.copy()
    begins[:, 0] = True
    place = np.arange(begins.shape[1], dtype=np.int32)
    start = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    return np.cumsum(begins, axis=1, dtype=np.int32) - 1, (place - start).astype(np.int32)
