"""The head of a GGUF file: what it says of the model, and where each tensor lies.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ragjax.errors import InputError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""Types of values, by their number in the file, as numpy calls them."""
_DIMENSIONS = 4


class Place(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    """As numpy has it: what lies next to each other is the last axis."""
    kind: int
    """Number of the type its values are stored in."""
    begin: int
    """Its first byte in the file."""


class Head(NamedTuple):
    """What stands before the weights."""

    metadata: dict[str, Any]
    """Values by key: numbers, truth values, strings and lists of them."""
    tensors: dict[str, Place]


def read_head(path: Path) -> Head:
    """Reads all but the weights; nothing in it is taken for true before it is checked.

    Raises:
      InputError: the file is none, of another version or byte order, one part of several, or damaged.
    """
    try:
        data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from None
    return _Cursor(path, data.data).head()


class _Cursor:
    """Reads on from where it stands, never beyond the end."""

    def __init__(self, path: Path, data: memoryview):
        self._path, self._data, self._at = path, data, 0

    def head(self) -> Head:
        self._check_kind_of_file()
        tensors, entries = self._number("<u8"), self._number("<u8")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in metadata:
                self._damaged(f"it has the key {key!r} twice")
            metadata[key] = self._value(self._number("<u4"))
        if metadata.get("split.count", 1) not in (0, 1):
            raise InputError(
                f"{self._path} is one of {metadata['split.count']} files of a model: make one of them with "
                "`llama-gguf-split --merge FIRST OUT.gguf`, and give that."
            )
        found = [self._tensor() for _ in range(tensors)]
        step = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(step, int) or step < 1:
            self._damaged(f"its general.alignment is {step!r}")
        begin = -(-self._at // step) * step
        places = {name: place._replace(begin=begin + place.begin) for name, place in found}
        if len(places) < len(found):
            self._damaged("it has two tensors of one name")
        return Head(metadata, places)

    def _check_kind_of_file(self) -> None:
        start = bytes(self._data[: len(_MAGIC)])
        if start != _MAGIC:
            pointer = bytes(self._data[:24]) == b"version https://git-lfs."
            hint = (
                "a pointer of Git LFS: fetch the file itself with `git lfs pull`" if pointer else repr(start)
            )
            raise InputError(f"{self._path} is no GGUF file: it must begin with {_MAGIC!r}, found {hint}.")
        self._at = len(_MAGIC)
        version = self._number("<u4")
        if version & 0xFFFF == 0:
            raise InputError(
                f"{self._path} is a GGUF file for big-endian machines: turn it with "
                "`gguf-convert-endian FILE little` of the package gguf."
            )
        if version not in _VERSIONS:
            raise InputError(
                f"{self._path}: GGUF version {' or '.join(map(str, _VERSIONS))} was expected, found "
                f"{version}: convert the model again with a current llama.cpp."
            )

    def _tensor(self) -> tuple[str, Place]:
        name = self._string()
        count = self._number("<u4")
        if count > _DIMENSIONS:
            self._damaged(f"tensor {name!r} has {count} axes")
        axes = [self._number("<u8") for _ in range(count)]
        kind = self._number("<u4")
        return name, Place(tuple(reversed(axes)), kind, self._number("<u8"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            self._damaged(f"it has a value of type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._number("<u4"), self._number("<u8")
        if kind == _STRING:
            # Each takes 8 bytes at least.
            self._check_room(8 * count)
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            self._damaged(f"it has a list of values of type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()

    def _number(self, dtype: str) -> Any:
        value = np.frombuffer(self._take(np.dtype(dtype).itemsize), dtype)[0]
        # 1e-5 in float32 is 9.99999974e-06 in Python: the shortest number of the same float32 is meant.
        return float(str(value)) if dtype == "<f4" else value.item()

    def _string(self) -> str:
        (length,) = struct.unpack("<Q", self._take(8))
        return str(self._take(length), "utf-8", "surrogateescape")

    def _take(self, size: int) -> memoryview:
        self._check_room(size)
        self._at += size
        return self._data[self._at - size : self._at]

    def _check_room(self, size: int) -> None:
        if size > len(self._data) - self._at:
            self._damaged(f"it ends after {len(self._data):,} bytes, within what it says of the model")

    def _damaged(self, why: str) -> NoReturn:
        raise InputError(f"{self._path} is not a whole GGUF file ({why}): copy or download it again.")
