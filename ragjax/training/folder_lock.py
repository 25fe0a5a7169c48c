"""One writer in a folder at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from ragjax.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


class FolderLock:
    """Holds a folder for this process until it is closed, or the process ends in whatever way.

    The kernel holds the lock on the open file, so that a crash leaves nothing to clean up. Systems
    without `flock` are not guarded.

    Args:
      folder: an existing folder.

    Raises:
      InputError: another process, or another part of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / NAME, "a+")  # noqa: SIM115 - held open until close()
        if locked(self._file):
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise InputError(
                f"{folder} is in use by another run ({holder}), and two would damage each other's work: "
                "wait for it to end, stop it, or choose another folder."
            )
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        """Releases the folder."""
        self._file.close()


def locked(file: IO) -> bool:
    """Whether another holds an open file; else it is held from now on, until it is closed."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
