"""A source as one long row of tokens, made once and then mapped from disk."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt

from ragjax.cache_folder import cache_folder
from ragjax.data.array_file import ArrayFile
from ragjax.data.encoding import Encoded, encoded_pairs, encoded_texts
from ragjax.data.sources import Split, digest, documents, pairs, side, training_split
from ragjax.data.tokenizer import fingerprint
from ragjax.data.uri import check_alike, parse_uri
from ragjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
"""Told how many documents and tokens there are so far."""

_FORMAT = 2
"""Raised when sources are read, split or encoded in another way: older entries are then not found."""

_TEXTS = ("tokens", "starts")
_PAIRS = (*_TEXTS, "completions")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens of all documents in order, each document closed by the end-of-text token.

    It also begins with the tokens its tokenizer puts before every text, but for one that closes it too.

    Attributes:
      tokens: uint16, or uint32 where the vocabulary needs it; read only.
      starts: where each document starts.
      utf8_bytes: bytes of the text itself.
      words: words of the text, as white space parts them.
      completions: where the completion of each document starts, which then is a pair; none: texts.
    """

    tokens: UInt[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " documents"]
    utf8_bytes: int
    words: int
    completions: Int[np.ndarray, " documents"] | None = None

    @property
    def documents(self) -> int:
        """Count of documents."""
        return len(self.starts)

    @property
    def ends(self) -> Int[np.ndarray, " documents"]:
        """The place after each document."""
        return np.append(self.starts[1:], len(self.tokens))

    @property
    def as_text(self) -> Corpus:
        """The same documents as texts, whose prompts count like all else."""
        return replace(self, completions=None)

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
    again. Text that looks like a special token is encoded as the letters it is made of, but in prompts.
    Memory is bounded by the longest document.

    Args:
      uri: the source, as in `documents`; of pairs, the corpus tells where completions start.
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
        ",".join(source.fields),
        side(source, split),
        fingerprint(tokenizer),
    ]
    entry = cache_folder(cache) / "corpora" / sha256(json.dumps(identity).encode()).hexdigest()
    corpus = _read(entry)
    if corpus is None:
        with _folder_to_fill(entry) as folder:
            if source.of_pairs:
                _write(folder, _PAIRS, encoded_pairs(pairs(uri, split), tokenizer), tokenizer, progress)
            else:
                _write(folder, _TEXTS, encoded_texts(documents(uri, split), tokenizer), tokenizer, progress)
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

    Raises:
      InputError: one source is of pairs and the other of texts; or as `open_corpus`.
    """
    check_alike(train, validation)
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
    folder: Path,
    names: tuple[str, ...],
    encoded: Iterable[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None,
) -> None:
    # An id may lie beyond their number.
    ids = max(len(tokenizer), 1 + max(tokenizer.backend_tokenizer.get_vocab().values()))
    types = {"tokens": np.uint16 if ids <= 1 << 16 else np.uint32}
    utf8_bytes = words = 0
    with ExitStack() as open_files:
        files = {
            name: open_files.enter_context(ArrayFile(folder / f"{name}.npy", types.get(name, np.int64)))
            for name in names
        }
        for batch in encoded:
            lengths = np.array([len(document) for document in batch.documents])
            first = files["tokens"].length + np.cumsum(lengths) - lengths
            files["starts"].append(first)
            if batch.prompts is not None:
                files["completions"].append(first + batch.prompts)
            dtype = files["tokens"].dtype
            files["tokens"].append(np.concatenate([np.asarray(each, dtype) for each in batch.documents]))
            utf8_bytes += batch.utf8_bytes
            words += batch.words
            if progress is not None:
                progress(files["starts"].length, files["tokens"].length)
    about = {"sizes": _sizes(folder, names), "counts": {"utf8_bytes": utf8_bytes, "words": words}}
    (folder / "corpus.json").write_text(json.dumps(about, indent=2))


def _read(entry: Path) -> Corpus | None:
    """The corpus in `entry`; none where it is missing or its files are not what was written."""
    try:
        return _map(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(folder: Path) -> Corpus:
    about = json.loads((folder / "corpus.json").read_bytes())
    names = _PAIRS if len(about["sizes"]) == len(_PAIRS) else _TEXTS
    if about["sizes"] != _sizes(folder, names):
        raise ValueError(f"{folder}: expected files of {about['sizes']} bytes")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    return Corpus(**arrays, **about["counts"])


def _sizes(folder: Path, names: tuple[str, ...]) -> dict[str, int]:
    return {f"{name}.npy": (folder / f"{name}.npy").stat().st_size for name in names}
