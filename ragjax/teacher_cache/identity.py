"""Texts and teachers by their content, wherever they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256

import jax
import numpy as np

from ragjax.data.corpus import Corpus
from ragjax.model import Model
from ragjax.parallel.hosts import to_host

_PIECE = 1 << 24
"""Numbers that are hashed at a time, so that a memory map stays on disk."""


def text_digest(corpus: Corpus, *, isolate_documents: bool, pack_pairs: bool = False) -> str:
    """SHA-256 of the tokens, and of where documents and completions start where that tells them apart.

    Args:
      corpus: the text.
      isolate_documents: whether attention stays within a document.
      pack_pairs: whether several pairs share a sequence.
    """
    arrays = [corpus.tokens]
    if corpus.completions is not None:
        arrays += [corpus.starts, corpus.completions]
    elif isolate_documents:
        arrays += [corpus.starts]
    found = sha256(b"packed;" if pack_pairs else b"")
    for array in arrays:
        found.update(f"{len(array)};".encode())
        for start in range(0, len(array), _PIECE):
            # One width for all: small vocabularies are stored in fewer bytes.
            found.update(np.ascontiguousarray(array[start : start + _PIECE], "<u8").tobytes())
    return found.hexdigest()


def teacher_digest(model: Model) -> str:
    """SHA-256 of a model's config and of its parameters, however they lie on devices; all hosts call it."""
    found = sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        found.update(f"{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape};".encode())
        for part in _parts(leaf):
            found.update(np.ascontiguousarray(to_host(part)).tobytes())
    return found.hexdigest()


def _parts(leaf: jax.Array | np.ndarray) -> Iterator[jax.Array | np.ndarray]:
    """What is fetched at a time: of the blocks' matrices one layer, not all."""
    # By index: an array over several hosts cannot be iterated over.
    return (leaf[layer] for layer in range(len(leaf))) if leaf.ndim == 3 else iter((leaf,))
