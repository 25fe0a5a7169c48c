"""A file of JSON lines that grows batch by batch, and is there under its name once it is whole."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ragjax.config_file import differences
from ragjax.errors import InputError, listing
from ragjax.interchange.atomic import atomic_file
from ragjax.interchange.json_file import read_object, write_object
from ragjax.training.folder_lock import locked

_FORMAT = 1
_OTHER = "Choose another name."


@dataclass(frozen=True)
class Written:
    """How far a dataset is."""

    rows: int = 0
    """Completions that were written or left out: all before the next one."""
    pairs: int = 0
    """Lines of the file."""
    blank: int = 0
    """Completions without text, which are left out."""
    cut: int = 0
    """Completions that were as long as they may be before they ended."""
    tokens: int = 0
    """Tokens that were generated."""
    bytes: int = 0
    """Size of the file."""
    seconds: float = 0.0
    """Time it took, loading left out."""


class Dataset:
    """A dataset that is begun here, now or before, and held for this process.

    Lines go to OUT.unfinished, which becomes OUT when it is whole. OUT's `.about.json` says what the lines
    are made from and how many count; what a stop left behind those is cut off.

    Args:
      out: the file, whose name ends in .jsonl.
      settings: what its lines depend on, as JSON values.
      origin: what else is to be known of it later, as JSON values.

    Attributes:
      finished: whether it is whole.
      written: how far it is.

    Raises:
      InputError: there is something else, or it is made from other settings, or another process is at it.
    """

    def __init__(self, out: str | Path, settings: dict[str, Any], origin: dict[str, Any]):
        self._out, self._origin = Path(out).expanduser(), origin
        self._settings = {"format": _FORMAT, **settings}
        self._lines = self._out.with_name(f"{self._out.name}.unfinished")
        self._about = self._out.with_suffix(".about.json")
        if self._out.suffix != ".jsonl":
            raise InputError(f"{out}: expected a name that ends in .jsonl.")
        self.written = self._found()
        self.finished = self._out.exists()
        self._file = None if self.finished else self._opened()

    def append(self, lines: str, written: Written) -> Written:
        """Adds some lines; returns how far the dataset is with them.

        Args:
          lines: each closed by a line break.
          written: how far the dataset is with them, but for its bytes.
        """
        assert self._file is not None
        self._file.write(lines.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(replace(written, bytes=self._file.tell()))
        return self.written

    def finish(self) -> None:
        """Gives the file its name."""
        os.replace(self._lines, self._out)
        self.finished = True
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()

    def _found(self) -> Written:
        """How far the dataset is that is there; nothing is changed."""
        if self._out.is_dir():
            raise InputError(f"{self._out} is a folder. {_OTHER}")
        there = next((file for file in (self._out, self._lines) if file.exists()), None)
        if not self._about.exists():
            # An empty one is left by a stop before anything was written.
            if there is not None and (there == self._out or there.stat().st_size):
                raise InputError(f"{there} exists, and not by `ragjax generate --dataset`. {_OTHER}")
            return Written()
        about = read_object(self._about)
        if not isinstance(about.get("settings"), dict) or not isinstance(about.get("written"), dict):
            raise InputError(f"{self._about} is of something else. {_OTHER}")
        if found := differences(about["settings"], self._settings):
            lines = [f"{name}: {_short(old)} there, {_short(new)} now" for name, (old, new) in found.items()]
            raise InputError(f"{self._out} is written with other settings:\n{listing(lines)}\n{_OTHER}")
        written, size = Written(**about["written"]), there.stat().st_size if there else 0
        if there != self._out and not size:
            # Nothing that was kept is left, or nothing but blank completions came so far.
            return Written() if written.bytes else written
        # After what counts there may be more lines, but not in a file that is whole.
        if size < written.bytes or (there == self._out and size > written.bytes):
            raise InputError(
                f"{there} was changed since it was written: {written.bytes} bytes were, {size} are. "
                "Remove it to write it anew."
            )
        return written

    def _opened(self) -> BinaryIO:
        """The file of lines, held, and cut off after those that count."""
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            file = self._lines.open("ab")
        except OSError as error:
            raise InputError(f"{self._lines}: cannot be written: {error.strerror}. {_OTHER}") from None
        try:
            # Who held it may just have given it its name.
            if locked(file) or self._out.exists():
                raise InputError(f"{self._out} is being written by another process: wait for it, or stop it.")
            self.written = self._found()
            file.truncate(self.written.bytes)
            self._note(self.written)
        except BaseException:
            file.close()
            raise
        return file

    def _note(self, written: Written) -> None:
        self.written = written
        with atomic_file(self._about, overwrite=True) as partial:
            about = {"origin": self._origin, "settings": self._settings, "written": asdict(written)}
            write_object(partial, about)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else repr(value)
