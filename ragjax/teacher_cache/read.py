"""Reading a cache in training: the rows a host holds, mapped from disk, of files that were checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from safetensors import safe_open

from ragjax.distillation.known import Drawn, Likeliest
from ragjax.errors import InputError, listing
from ragjax.teacher_cache.asked import Known
from ragjax.teacher_cache.manifest import WINDOWS, damage, read_manifest, shard_name


class TeacherCache:
    """A finished cache that is open for reading.

    The size of every file is checked when it is opened, and its SHA-256 once, when it is first read.

    Attributes:
      folder: where it is.
      manifest: what it holds.
      windows: the numbers of the windows it holds, rising.

    Raises:
      InputError: there is none, it is not finished, or a file is not as it was written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise InputError(
                f"A teacher's cache was expected, {self.folder} is none: write one with "
                "`ragjax cache-teacher CONFIG OUT`."
            )
        if manifest.files is None:
            raise InputError(
                f"The teacher's cache {self.folder} is not finished: go on with the `ragjax cache-teacher` "
                "that began it."
            )
        self.manifest = manifest
        sizes = [damage(self.folder, manifest, name, deep=False) for name in manifest.files]
        if found := [line for line in sizes if line]:
            raise InputError(self._repair(listing(found)))
        self._open: dict[str, dict] = {}
        self.windows: Int[np.ndarray, " sequences"] = self._file(WINDOWS)["windows"][:]

    def __call__(self, window: Int[np.ndarray, " rows"]) -> Known:
        """What is kept of the teacher's distributions in some windows, all of which it must hold."""
        held = self.manifest.held
        row = np.searchsorted(self.windows, window)
        shard, place = np.divmod(row, self.manifest.rows_per_shard)
        found = {
            name: np.empty((len(row), held.sequence_length, numbers), dtype)
            for name, (numbers, dtype) in held.columns.items()
        }
        for number in range(len(row)):
            arrays = self._file(shard_name(shard[number]))
            for name, array in found.items():
                array[number] = arrays[name][place[number] : place[number] + 1][0]
        kind: Any = Likeliest if held.kept.kind == "likeliest" else Drawn
        return kind(**found)

    def _file(self, name: str) -> dict:
        """The arrays of a file, not yet in memory; read through once."""
        if name not in self._open:
            if found := damage(self.folder, self.manifest, name):
                raise InputError(self._repair(found))
            opened = safe_open(self.folder / name, framework="numpy")
            self._open[name] = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
        return self._open[name]

    def _repair(self, found: str) -> str:
        return (
            f"The teacher's cache {self.folder} is damaged:\n{found}\n"
            "The `ragjax cache-teacher` that wrote it makes anew what is amiss."
        )
