"""Work that goes by block by block, kept as it is done, so that what was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from ragjax.errors import InputError, listing
from ragjax.interchange.atomic import atomic_file, check_creatable
from ragjax.interchange.json_file import read_object, write_object
from ragjax.interchange.tensors import open_weight_file, write_weight_file
from ragjax.model import Model
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.hosts import is_writer
from ragjax.teacher_cache.identity import teacher_digest
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Interrupted

_ASKED = "asked.json"


def identity(model: Model, tokens: Int[np.ndarray, "batches rows seq"]) -> dict[str, str]:
    """What is worked on, as JSON values: digests of a model and of a calibration text; all hosts call it.

    Args:
      model: as it was before.
      tokens: the text.
    """
    text = sha256(f"{tokens.shape}".encode() + np.ascontiguousarray(tokens, "<i8").tobytes())
    return {"model": teacher_digest(model), "text": text.hexdigest()}


def beside(out: str | Path) -> Path:
    """Where blocks are kept until `out` is written: `out.unfinished`."""
    path = Path(out).expanduser()
    return path.with_name(f"{path.name}.unfinished")


def remove(folder: Path) -> None:
    """Takes an `Unfinished` folder away, if it is there, when what it was for is done."""
    if is_writer():
        shutil.rmtree(folder, ignore_errors=True)


def end_if_asked(interrupts: Interrupts, done: int, of: int, folder: Path) -> None:
    """Ends the work after a block, where somebody asked to stop and more are left; all hosts call it.

    Args:
      interrupts: what was asked.
      done: blocks that are done, and kept.
      of: how many there are.
      folder: where they are kept.

    Raises:
      Interrupted: says what is kept.
    """
    if interrupts.requested() and done < of:
        raise Interrupted(f"Stopped; {done} of {of} blocks are kept in {folder}")


class Unfinished:
    """A folder with what came of each block that is done, a file a block, whole or not there at all.

    It is made with the first of them, and tells what for, so that nothing else goes on from it.

    Attributes:
      folder: where it is, shared by all hosts.
      done: how many blocks are in it, from the first one on.
    """

    def __init__(self, folder: str | Path, asked: dict[str, Any]):
        """Looks for what an earlier call has left there; all hosts call it alike.

        Args:
          folder: as above.
          asked: what the work is, as JSON values; only the same goes on.

        Raises:
          InputError: the folder holds something else, and how it differs; or it cannot be written.
        """
        self.folder = Path(folder).expanduser()
        self._asked = json.loads(json.dumps(asked))
        from_writer(self._check)
        self.done = 0
        while self._file(self.done).is_file():
            self.done += 1
        if jax.process_count() > 1:
            # A host that does not see the files has none go on from them.
            self.done = int(np.min(multihost_utils.process_allgather(np.int32(self.done))))

    def blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """What was kept of each block that is done, in their order."""
        for block in range(self.done):
            file = open_weight_file(self._file(block))
            yield {name: file.read(name) for name in file.header}

    def keep(self, block: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps what came of a block.

        Args:
          block: its number; those before it are kept.
          arrays: by name.
        """
        if not is_writer():
            return
        if block == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.folder / _ASKED, overwrite=True) as partial:
                write_object(partial, self._asked)
        with atomic_file(self._file(block), overwrite=True) as partial:
            write_weight_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, partial, {})

    def _file(self, block: int) -> Path:
        return self.folder / f"block_{block:05d}.safetensors"

    def _check(self) -> None:
        check_creatable(self.folder)
        if not self.folder.exists():
            return
        if not (self.folder / _ASKED).is_file():
            raise InputError(
                f"{self.folder} holds something else than blocks of an earlier call: remove it, or choose "
                "another name."
            )
        there = read_object(self.folder / _ASKED)
        unlike = [
            f"{name} was {there.get(name)!r}, is {self._asked.get(name)!r}"
            for name in {**there, **self._asked}
            if there.get(name) != self._asked.get(name)
        ]
        if unlike:
            raise InputError(
                f"{self.folder} was begun otherwise:\n{listing(unlike)}\nAsk for the same to go on with it, "
                "remove it, or choose another name."
            )
        for left in self.folder.glob(".*.partial"):
            left.unlink(missing_ok=True)
