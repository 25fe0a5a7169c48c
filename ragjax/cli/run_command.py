"""What the verbs that run a config file share: reading it, and how a long work ends."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

import tyro

from ragjax.cli.exits import EXIT_DIVERGED, fail
from ragjax.config import Compress
from ragjax.config_file import read_config
from ragjax.errors import InputError

T = TypeVar("T")


def read_command(verb: str, given: list[str], command: type, kind: type) -> tuple[Any, Path]:
    """The command with its config file read and overridden, and the run folder."""
    parsed, file = read_config_command(verb, given, command, kind)
    workdir = parsed.workdir
    if workdir is None:
        # The config of a run folder goes on in that folder.
        workdir = Path("runs") / file.stem if file.suffix == ".py" else file.parent
    return parsed, workdir


def read_config_command(verb: str, given: list[str], command: type, kind: type) -> tuple[Any, Path]:
    """The command with its config file read and overridden, and that file."""
    file = Path(given[0] if given and not given[0].startswith("-") else "")
    asked = {"-h", "--help"} & set(given)
    if not file.name and not asked:
        raise InputError(
            f"A config file comes first: ragjax {verb} CONFIG.py [options]; see ragjax {verb} --help."
        )
    config, told = read_config(file) if file.name else (kind(), "")
    if not isinstance(config, kind):
        other = "train" if kind is Compress else "compress"
        raise InputError(f"{file} holds a {type(config).__name__}: use `ragjax {other} {file}`.")
    parsed = tyro.cli(
        command,
        default=command(config=config),
        args=given[1:] if file.name else given,
        prog=f"ragjax {verb} {file if file.name else 'CONFIG.py'}",
        description="\n\n".join(filter(None, [cleandoc(command.__doc__ or ""), told])),
    )
    return parsed, file


def long_work(work: Callable[[], T], again: str) -> T:
    """Does long work, and returns what it does; one that stopped or diverged ends the command with its exit
    code.

    Args:
      work: the work.
      again: the command that goes on with it.
    """
    from ragjax.training.interrupts import EXIT_INTERRUPTED
    from ragjax.training.loop import Diverged, Interrupted

    try:
        return work()
    except Interrupted as stopped:
        fail(f"{stopped}. Go on with: {again}", EXIT_INTERRUPTED)
    except Diverged as error:
        fail(str(error), EXIT_DIVERGED)
