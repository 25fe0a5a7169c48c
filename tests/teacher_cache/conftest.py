import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.teacher_cache import Held, Kept, asked, teacher_digest, text_digest, write_cache
from ragjax.teacher_cache.manifest import windows_digest

ROWS = 8
FULL = Kept(kind="likeliest", count=299, dtype="float32", temperature=1.0)


class Made(NamedTuple):
    """All that a cache is written from."""

    held: Held
    windows: np.ndarray
    ask: object

    def write(self, folder, **options):
        return write_cache(folder, self.held, self.windows, self.ask, batch_rows=ROWS, **options)


@pytest.fixture(scope="session")
def corpus():
    """36 windows of 16 tokens, in documents of 50."""
    tokens = np.random.default_rng(0).integers(0, 300, 590).astype(np.uint16)
    return Corpus(tokens, np.arange(0, 590, 50), utf8_bytes=590, words=150)


@pytest.fixture(scope="session")
def teacher(tiny_config):
    return Model(tiny_config, init_params(tiny_config, seed=5))


@pytest.fixture(scope="session")
def making(corpus, teacher):
    """Makes what a cache is written from, for a kind of cache, a training and a number of devices."""

    def make(kept=FULL, *, steps=100, devices=1, isolate=False, chunk_tokens=512):
        mesh = make_mesh(Mesh(), jax.devices()[:devices])
        batches = Batches(
            corpus=corpus, batch_size=ROWS, sequence_length=16, seed=3, isolate_documents=isolate,
            fixed_cuts=True,
        )  # fmt: skip
        windows = batches.visited(steps)
        held = Held(
            text=text_digest(corpus, isolate_documents=isolate), teacher=teacher_digest(teacher),
            computed_in="float32", vocab_size=300, sequence_length=16, isolate_documents=isolate,
            windows=batches.windows, sequences=len(windows), which=windows_digest(windows), kept=kept,
        )  # fmt: skip
        placed = dataclasses.replace(teacher, params=place(teacher.params, mesh))
        return Made(held, windows, asked(placed, held, batches, mesh, chunk_tokens=chunk_tokens))

    return make


@pytest.fixture
def small_shards(monkeypatch):
    """A batch a shard."""
    monkeypatch.setattr("ragjax.teacher_cache.write._SMALLEST", 1)


@pytest.fixture(scope="session")
def contents():
    """The bytes of all files in a folder, by name."""
    return lambda folder: {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def kept():
    """Makes a kind of cache."""

    def make(kind, count, **fields):
        return Kept(kind=kind, count=count, **fields)

    return make
