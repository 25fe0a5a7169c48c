"""A source as one long row of tokens, made once and then mapped from disk."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt

from ragjax.cache_folder import cache_folder
from ragjax.data.array_file import ArrayFile
from ragjax.data.sources import Split, digest, documents, side, training_split
from ragjax.data.tokenizer import fingerprint, opening
from ragjax.data.uri import parse_uri
from ragjax.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
"""Told how many documents and tokens there are so far."""

_FORMAT = 2
"""Raised when sources are read, split or encoded in another way: older entries are then not found."""

_ARRAYS = ("tokens.npy", "starts.npy")
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens of all documents in order, each document closed by the end-of-text token.

    It also begins with the tokens its tokenizer puts before every text, but for one that closes it too.

    Attributes:
      tokens: uint16, or uint32 where the vocabulary needs it; read only.
      starts: where each document starts.
      utf8_bytes: bytes of the text itself.
      words: words of the text, as white space parts them.
    """

    tokens: UInt[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " documents"]
    utf8_bytes: int
    words: int

    @property
    def documents(self) -> int:
        """Count of documents."""
        return len(self.starts)

    def document(self, number: int) -> UInt[np.ndarray, " length"]:
        """Tokens of one document, with those that open it and the end-of-text token that closes it."""
        stop = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.tokens)
        return self.tokens[self.starts[number] : stop]

    def __len__(self) -> int:
        return len(self.tokens)


def open_corpus(
    uri: str,
    split: Split | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """The tokens of a source, from the cache where they are, else tokenized into it.

    An entry is named by the content of the source, the split and the tokenizer; several processes may
    write the same one at once. An entry whose files have not the sizes they were written with is made
    again. Text that looks like a special token is encoded as the letters it is made of. Memory is
    bounded by the longest document.

    Args:
      uri: the source, as in `documents`.
      split: the side of its split, as in `documents`.
      tokenizer: a fast tokenizer with an end-of-text token.
      cache: folder of the cache; none: RAGJAX_CACHE, or ~/.cache/ragjax.
      progress: called after each batch of documents that is tokenized.

    Returns:
      The corpus, mapped from disk.

    Raises:
      InputError: the source cannot be read, the tokenizer is not fit, or the cache cannot be written.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("expected a tokenizer with an end-of-text token, found none: set its eos_token")
    source = parse_uri(uri)
    identity = [
        _FORMAT,
        source.scheme,
        digest(source),
        source.field,
        side(source, split),
        fingerprint(tokenizer),
    ]
    entry = cache_folder(cache) / "corpora" / sha256(json.dumps(identity).encode()).hexdigest()
    corpus = _read(entry)
    if corpus is None:
        with _folder_to_fill(entry) as folder:
            _write(folder, documents(uri, split), tokenizer, progress)
            corpus = _map(folder)
    return corpus


def open_corpora(
    train: str,
    validation: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Corpus, Corpus]:
    """The corpora to train and to validate on.

    Args:
      train: source to train on.
      validation: source to validate on; none: documents of `train` are held out.
      tokenizer: as in `open_corpus`.
      cache: as in `open_corpus`.
      progress: as in `open_corpus`.
    """
    opened = partial(open_corpus, tokenizer=tokenizer, cache=cache, progress=progress)
    split = training_split(train, hold_out=validation is None)
    held_out = opened(train, "validation") if validation is None else opened(validation, None)
    return opened(train, split), held_out


@contextmanager
def _folder_to_fill(entry: Path) -> Iterator[Path]:
    """A temporary folder beside `entry` that takes its place when it is full.

    What is mapped from it stays mapped, wherever the folder goes.
    """
    folder = entry.parent / f"writing-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            f"the token cache {entry.parent} cannot be written: {error.strerror}. "
            "Set data.cache or RAGJAX_CACHE to a folder that can"
        ) from error
    try:
        yield folder
        if _read(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)
        try:
            folder.rename(entry)
        except OSError:
            # Another process was first: its entry is as good as this one.
            if _read(entry) is None:
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, progress: Progress | None
) -> None:
    encoder = _encoder(tokenizer)
    # An id may lie beyond their number.
    ids = max(len(tokenizer), 1 + max(encoder.get_vocab().values()))
    dtype = np.dtype(np.uint16 if ids <= 1 << 16 else np.uint32)
    first, last = document_ends(tokenizer)
    utf8_bytes = words = 0
    with (
        ArrayFile(folder / "tokens.npy", dtype) as tokens,
        ArrayFile(folder / "starts.npy", np.int64) as starts,
    ):
        for batch in _batches(texts):
            encoded = encoder.encode_batch_fast(batch, add_special_tokens=False)
            documents = [[*first, *one.ids, *last] for one in encoded]
            lengths = np.array([len(document) for document in documents])
            starts.append(tokens.length + np.cumsum(lengths) - lengths)
            tokens.append(np.concatenate([np.asarray(document, dtype) for document in documents]))
            utf8_bytes += sum(len(text.encode()) for text in batch)
            words += sum(len(text.split()) for text in batch)
            if progress is not None:
                progress(starts.length, tokens.length)
    sizes = {name: (folder / name).stat().st_size for name in _ARRAYS}
    counts = {"utf8_bytes": utf8_bytes, "words": words}
    (folder / "corpus.json").write_text(json.dumps({"sizes": sizes, "counts": counts}, indent=2))


def document_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids before and after each document of a corpus."""
    first, last = opening(tokenizer), [tokenizer.eos_token_id]
    return ([] if first == last else first), last


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy that neither cuts nor pads, and takes no letters for special tokens."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _read(entry: Path) -> Corpus | None:
    """The corpus in `entry`; none where it is missing or its files are not what was written."""
    try:
        return _map(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(folder: Path) -> Corpus:
    about = json.loads((folder / "corpus.json").read_bytes())
    if about["sizes"] != {name: (folder / name).stat().st_size for name in _ARRAYS}:
        raise ValueError(f"{folder}: expected files of {about['sizes']} bytes")
    tokens, starts = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in _ARRAYS)
    return Corpus(tokens, starts, **about["counts"])
