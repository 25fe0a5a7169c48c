"""A small tokenizer, and text files to read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ragjax.data.tokenizer import train_tokenizer

SENTENCES = [
    f"The {noun} of document {i} is über {i % 7} — naïve 文 {noun}." for i, noun in enumerate("abcdefgh" * 8)
]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """64 different short texts, not all of them ASCII."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE of 300 tokens."""
    return train_tokenizer(SENTENCES, 300)


@pytest.fixture
def jsonl(tmp_path, sentences) -> Callable[..., str]:
    """Writes texts to a file of JSON lines and gives its URI."""

    def write(texts: list[str] = sentences, name: str = "texts.jsonl", field: str = "text") -> str:
        path: Path = tmp_path / name
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
        return f"jsonl:{path}#{field}"

    return write
