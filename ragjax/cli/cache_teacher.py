"""The verb `cache-teacher`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ragjax.cli.run_command import long_work, read_config_command
from ragjax.config import Compress
from ragjax.errors import InputError


@dataclass(frozen=True)
class _CacheTeacherCommand:
    """Run the teacher over the text once, and keep what it says for the students that will learn from it.

    Any field of the config can be set here. The same command goes on where it stopped. Students train with
    `ragjax compress CONFIG --teacher.cache OUT --data.fixed-cuts`.
    """

    config: Annotated[Compress, arg(name="")]
    out: Annotated[Positional[Path | None], arg(metavar="OUT")] = None
    """Folder of the cache; new, empty, or begun by the same command."""
    top_k: int | None = None
    """Likeliest tokens that are kept of each distribution, all others being one more; none: 64."""
    draws: int | None = None
    """Tokens drawn from each distribution instead, for forward_kl without bias."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the log-probabilities on disk."""
    batch_size: int | None = None
    """Sequences the teacher reads at once, over all hosts; none: train.batch_size."""


def run(given: list[str]) -> None:
    """Does `ragjax cache-teacher`, given the words that follow it."""
    command, file = read_config_command("cache-teacher", given, _CacheTeacherCommand, Compress)
    if command.out is None:
        raise InputError("A folder for the cache comes after the config: ragjax cache-teacher CONFIG OUT.")
    from ragjax.caching import cache_teacher

    long_work(
        lambda: cache_teacher(
            command.config, command.out, top_k=command.top_k, draws=command.draws, dtype=command.dtype,
            batch_size=command.batch_size,
        ),
        f"the same command: ragjax cache-teacher {file} {command.out} ...",
    )  # fmt: skip
