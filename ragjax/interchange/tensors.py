"""Weights as safetensors, in one file or in shards, read and written one tensor at a time."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ragjax.errors import InputError, listing
from ragjax.interchange.json_file import read_object, write_object
from ragjax.interchange.sweep import is_finite

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
"""Types a model can be stored in."""
READ_DTYPES = ("F32", "F16", "BF16")
"""Types of weights that are read, by safetensors' names."""
_NUMPY_DTYPES = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8, "I8": np.int8,
    "F64": np.float64, "I32": np.int32, "I64": np.int64,
}  # fmt: skip

_AHEAD = 1 << 26
"""Bytes after a tensor that are read from the disk while it is worked on."""

_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_CONVERT = (
    "convert it once, where torch is installed: "
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{folder}'{more}).save_pretrained('{folder}')\""
)
_OTHER_FORMATS = {
    "pytorch_model*.bin*": ("", ""),
    "flax_model*.msgpack*": (", from_flax=True", " (with transformers 4)"),
    "tf_model*.h5*": (", from_tf=True", " (with transformers 4)"),
}


class Tensors(Protocol):
    """Open weights: the shape of every tensor, and its values when asked for.

    Attributes:
      shapes: shape of each tensor, by name.
      dtypes: type of each, as safetensors calls it.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, in the type they are stored in."""
        ...


class SafeTensors:
    """The tensors of open safetensors files, as `Tensors`."""

    def __init__(self, files: Mapping[str, WeightFile]):
        self._files = files
        headers = {name: file.header[name] for name, file in files.items()}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(header["shape"]) for name, header in headers.items()
        }
        self.dtypes: dict[str, str] = {name: header["dtype"] for name, header in headers.items()}

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, in the type they are stored in; read from the file as they are used."""
        return self._files[name].read(name)


class WeightFile:
    """One safetensors file, mapped into memory.

    Attributes:
      header: of each tensor by name, as the file states it: `dtype`, `shape`, `data_offsets`.
      metadata: what the file says of itself: names and texts.
    """

    def __init__(self, path: Path):
        """Opens a file that safetensors has found whole."""
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self.header = json.loads(file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.metadata: dict[str, str] = self.header.pop("__metadata__", {})
        self._begin = 8 + length

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, not yet in memory."""
        stated = self.header[name]
        begin, end = (self._begin + offset for offset in stated["data_offsets"])
        self._fetch(begin, end + _AHEAD)
        values = np.frombuffer(self._map, np.uint8, end - begin, begin)
        return values.view(_NUMPY_DTYPES[stated["dtype"]]).reshape(stated["shape"])

    def _fetch(self, begin: int, end: int) -> None:
        """Has the system read these bytes ahead, where it can be told to."""
        if hasattr(mmap, "MADV_WILLNEED"):
            start = begin - begin % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, min(end, len(self._map)) - start)


def open_tensors(folder: Path) -> Tensors:
    """The weights in a Hugging Face folder.

    Raises:
      InputError: there are none, they are of another format, cut off, or spread over files that are not
        there.
    """
    if (folder / SINGLE).is_file():
        file = open_weight_file(folder / SINGLE)
        return SafeTensors(dict.fromkeys(file.header, file))
    if (folder / INDEX).is_file():
        return SafeTensors(_open_shards(folder))
    raise InputError(_no_weights(folder))


def open_weight_file(path: Path) -> WeightFile:
    """Opens a safetensors file.

    Raises:
      InputError: it is damaged, or no safetensors file.
    """
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        hint = "copy or download it again"
        with path.open("rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                hint = "it is a pointer of Git LFS: fetch the file itself with `git lfs pull`"
        raise InputError(f"{path} is not a whole safetensors file ({error}): {hint}.") from None
    return WeightFile(path)


def _open_shards(folder: Path) -> dict[str, WeightFile]:
    index = folder / INDEX
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: expected weight_map, an object from tensor names to file names.")
    names = sorted({str(name) for name in places.values()})
    wrong = [f"{name!r} is no file name" for name in names if not _SHARD.fullmatch(name)]
    wrong += [
        f"{name} is missing" for name in names if _SHARD.fullmatch(name) and not (folder / name).is_file()
    ]
    if wrong:
        raise InputError(
            f"{index}: names of safetensors files in the same folder were expected:\n{listing(wrong)}\n"
            "Copy or download the model again."
        )
    shards = {name: open_weight_file(folder / name) for name in names}
    absent = [f"{name}: not in {place}" for name, place in places.items() if name not in shards[place].header]
    if absent:
        raise InputError(f"{index}: tensors are not where it says:\n{listing(absent)}")
    return {name: shards[place] for name, place in places.items()}


def _no_weights(folder: Path) -> str:
    for pattern, (more, note) in _OTHER_FORMATS.items():
        found = sorted(folder.glob(pattern))
        if found:
            way = _CONVERT.format(folder=folder, more=more)
            return f"{folder}: {SINGLE} was expected, found {found[0].name}, which is not read; {way}{note}"
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    return f"{folder} holds no weights: looked for {SINGLE} and {INDEX}, found {names}."


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes weights as Hugging Face does, holding no more than one shard.

    Args:
      folder: where to.
      shapes: shape of each tensor, by name, in the order they are written.
      read: gives the values of one.
      dtype: type they are stored in, of `STORED_DTYPES`.
      shard_bytes: size above which weights are spread over several files.

    Raises:
      InputError: the type is not known, or values are not finite in it.
    """
    check_dtype(dtype, shard_bytes)
    width = np.dtype(STORED_DTYPES[dtype]).itemsize
    sizes = {name: int(np.prod(shape)) * width for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = [SINGLE]

    bad = []
    for file, names in zip(files, shards, strict=True):
        held = {}
        for name in names:
            held[name] = as_stored(read(name), dtype)
            if not is_finite(held[name]):
                bad.append(name)
        if not bad:
            write_weight_file(held, folder / file, {"format": "pt"})
    if bad:
        raise InputError(f"Weights that are not finite as {dtype} cannot be saved:\n{listing(bad)}")
    if len(shards) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        about = {"total_parameters": sum(sizes.values()) // width, "total_size": sum(sizes.values())}
        write_object(folder / INDEX, {"metadata": about, "weight_map": places})


def check_dtype(dtype: str, shard_bytes: int) -> None:
    """Refuses a type that weights are not stored in, and files of no size."""
    if dtype not in STORED_DTYPES:
        raise InputError(f"dtype must be one of {', '.join(STORED_DTYPES)}, found {dtype!r}.")
    if shard_bytes < 1:
        raise InputError(f"shard_bytes must be at least 1, found {shard_bytes}.")


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values in the type they are stored in, row by row; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(STORED_DTYPES[dtype], copy=False))


def write_weight_file(tensors: dict[str, np.ndarray], file: Path, metadata: dict[str, str]) -> None:
    """Writes one safetensors file, which those may read who may read any other.

    Raises:
      OSError: it cannot be written: the disk is full, say.
    """
    # safetensors makes files that only their owner may read.
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        # It has a type of its own for what the system said.
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from None
        raise
    file.chmod(mode)
