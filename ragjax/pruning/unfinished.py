"""Work that goes by block by block, kept as it is done, so that what was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, overload

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int
from rich.console import Console

from ragjax.errors import InputError, listing
from ragjax.interchange.atomic import atomic_file, check_creatable
from ragjax.interchange.json_file import read_object, write_object
from ragjax.interchange.tensors import open_weight_file, write_weight_file
from ragjax.model import Model
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.hosts import is_writer
from ragjax.teacher_cache.identity import teacher_digest
from ragjax.training import folder_lock
from ragjax.training.folder_lock import FolderLock
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Interrupted

Block = TypeVar("Block")
Arrays = dict[str, np.ndarray]
_ASKED = "asked.json"
_PARTIAL = ".*.partial"
_OWN = (_ASKED, "block_*.safetensors", _PARTIAL, folder_lock.NAME)


def identity(model: Model, tokens: Int[np.ndarray, "batches rows seq"]) -> dict[str, str]:
    """What is worked on, as JSON values: digests of a model and of a calibration text; all hosts call it.

    Args:
      model: as it was before.
      tokens: the text, however it is cut into microbatches.
    """
    text = sha256(f"{tokens.shape[-1]};".encode() + np.ascontiguousarray(tokens, "<i8").tobytes())
    return {
        "ragjax": metadata.version("ragjax"),
        "model": teacher_digest(model),
        "text": text.hexdigest(),
    }


def beside(out: str | Path) -> Path:
    """Where blocks are kept until `out` is written: `out.unfinished`."""
    path = Path(out).expanduser().resolve()
    return path.with_name(f"{path.name}.unfinished")


def announced(out: str | Path, console: Console) -> Path:
    """`beside`, of which is told where an earlier call has left something there.

    Args:
      out: what is to be written.
      console: where it is told.
    """
    folder = beside(out)
    if folder.exists():
        console.print(f"going on from {folder}", markup=False)
    return folder


def remove(folder: Path) -> None:
    """Takes away what an `Unfinished` wrote to its folder, and the folder where it held nothing else."""
    if not is_writer() or not folder.is_dir():
        return
    for pattern in _OWN:
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def end_if_asked(interrupts: Interrupts, done: int, of: int, folder: Path) -> None:
    """Ends the work after a block, where somebody asked to stop; all hosts call it.

    Args:
      interrupts: what was asked.
      done: blocks that are done, and kept.
      of: how many there are.
      folder: where they are kept.

    Raises:
      Interrupted: says what is kept.
    """
    if interrupts.requested():
        raise Interrupted(f"Stopped; {done} of {of} blocks are kept in {folder}")


class Unfinished:
    """A folder with what came of each block that is done, a file a block, whole or not there at all.

    It tells what for, so that nothing else goes on from it, and is held for one process while it is entered.
    One in which no block came to be is gone at the end.

    Attributes:
      folder: where it is, shared by all hosts.
      done: how many blocks an earlier call has left in it, from the first one on.
    """

    def __init__(self, folder: str | Path, asked: dict[str, Any]):
        """Looks for what an earlier call has left there; all hosts call it alike, as all of this.

        Args:
          folder: as above.
          asked: what the work is, as JSON values; only the same goes on.

        Raises:
          InputError: the folder holds something else, and how it differs; it is in use; or it cannot be
            written.
        """
        self.folder = Path(folder).expanduser()
        self._asked = json.loads(json.dumps(asked))
        self._lock: FolderLock | None = None
        from_writer(self._begin)
        self.done = 0
        while self._file(self.done).is_file():
            self.done += 1
        if jax.process_count() > 1:
            # A host that does not see the files has none go on from them.
            self.done = int(np.min(multihost_utils.process_allgather(np.int32(self.done))))

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            if not self._file(0).exists():
                remove(self.folder)
            self._lock.close()

    def blocks(self, made_of: Callable[[Arrays], Block]) -> Sequence[Block]:
        """What was kept of each block that is done, read when it is asked for.

        Args:
          made_of: what the arrays of a block stand for.
        """
        return _Read(self.done, lambda number: made_of(self._read(number)))

    def keep(self, block: int, arrays: Arrays) -> None:
        """Keeps what came of a block.

        Args:
          block: its number; those before it are kept.
          arrays: by name.

        Raises:
          OSError: they cannot be written; on every host.
        """

        def write() -> None:
            with atomic_file(self._file(block), overwrite=True) as partial:
                write_weight_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, partial, {})

        from_writer(write)

    def _read(self, block: int) -> Arrays:
        file = open_weight_file(self._file(block))
        return {name: file.read(name) for name in file.header}

    def _file(self, block: int) -> Path:
        return self.folder / f"block_{block:05d}.safetensors"

    def _begin(self) -> None:
        check_creatable(self.folder)
        if self.folder.exists():
            self._check_own()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        for left in self.folder.glob(_PARTIAL):
            left.unlink(missing_ok=True)
        if not (self.folder / _ASKED).is_file():
            with atomic_file(self.folder / _ASKED) as partial:
                write_object(partial, self._asked)

    def _check_own(self) -> None:
        """Refuses a folder of something else, as it is."""
        if (self.folder / _ASKED).is_file():
            there = read_object(self.folder / _ASKED)
            unlike = [
                f"{name} was {there.get(name)!r}, is {self._asked.get(name)!r}"
                for name in {**there, **self._asked}
                if there.get(name) != self._asked.get(name)
            ]
            if unlike:
                raise InputError(
                    f"{self.folder} was begun otherwise:\n{listing(unlike)}\nAsk for the same to go on with "
                    "it, remove it, or choose another name."
                )
        elif not self.folder.is_dir() or any(
            not any(file.match(pattern) for pattern in _OWN) for file in self.folder.iterdir()
        ):
            raise InputError(
                f"{self.folder} holds something else than blocks of an earlier call: remove it, or choose "
                "another name."
            )


class Going(NamedTuple, Generic[Block]):
    """What work that goes by block by block takes from an earlier call, and leaves to a later one."""

    done: Sequence[Block] = ()
    """The blocks that an earlier call has done, from the first one on."""
    keep: Callable[[int, Block], None] | None = None
    """Given each block that is done now, by its number; none: nothing is kept."""


@contextmanager
def going_on(
    folder: str | Path | None,
    asked: Callable[[], dict[str, Any]],
    made_of: Callable[[Arrays], Block],
    arrays_of: Callable[[Block], Arrays],
) -> Iterator[Going[Block]]:
    """Opens an `Unfinished` for blocks of one kind.

    Args:
      folder: where; none: nothing is kept, and what is asked for is not found out.
      asked: tells what the work is.
      made_of: what the arrays of a block stand for.
      arrays_of: and back.
    """
    if folder is None:
        yield Going()
        return
    with Unfinished(folder, asked()) as kept:
        yield Going(kept.blocks(made_of), lambda number, block: kept.keep(number, arrays_of(block)))


class _Read(Sequence[Block], Generic[Block]):
    """A sequence of which each part is read anew when it is asked for, and held by nobody here."""

    def __init__(self, count: int, read: Callable[[int], Block]):
        self._count, self._of = count, read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Block: ...
    @overload
    def __getitem__(self, number: slice) -> list[Block]: ...
    def __getitem__(self, number: int | slice) -> Block | list[Block]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._of(number)
