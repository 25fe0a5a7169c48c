"""A text to compress and to train on, and a cache of its own for each file of tests."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(40)]
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(words, 60)))
    return f"text:{folder}/*.txt"


@pytest.fixture(scope="module")
def monkeypatch_module(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch
