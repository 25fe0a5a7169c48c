"""The verb `tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg


def run(given: list[str]) -> None:
    """Does `ragjax tokenizer`, given the words that follow it."""
    tyro.cli(_tokenizer, args=given, prog="ragjax tokenizer")


def _tokenizer(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    out: Annotated[Positional[Path], arg(metavar="FOLDER")],
    vocab_size: int = 32_000,
) -> None:
    """Train a byte-level BPE tokenizer and save it in GPT-2's format.

    Args:
        source: Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME.
        out: Folder to write; must not exist.
        vocab_size: Tokens, the end-of-text token included.
    """
    from ragjax.data import documents, save_tokenizer, train_tokenizer, training_split
    from ragjax.interchange.atomic import atomic_folder

    with atomic_folder(out, overwrite=False) as folder:
        made = train_tokenizer(documents(source, training_split(source, hold_out=False)), vocab_size)
        save_tokenizer(made, folder)
    print(f"{out}: {len(made):,} tokens. Use it with --data.tokenizer {out}")
