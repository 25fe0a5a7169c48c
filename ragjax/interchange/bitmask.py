"""Sparse weights in safetensors: one bit for each weight, and the values that are not zero.

Files are named `model-NNNNN.bitmask.safetensors`. A tensor T is stored as

    T.bits     uint8 [ceil(size / 8)]  bit i % 8 (counted from the least) of byte i // 8 is 1 where value i,
                                       in row-major order, is not a zero
    T.values   [ones among the bits]   those values in the same order

and its shape stands in the file's metadata, `{"format": "ragjax-bitmask", "version": "1", "shapes": JSON}`.
A tensor that would not get smaller is stored under its own name, as it is. A zero with a minus sign is a
value, so that every bit of every weight comes back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ragjax.errors import InputError, listing
from ragjax.interchange.families import family_for
from ragjax.interchange.layout import tensor_reader
from ragjax.interchange.sweep import is_finite
from ragjax.interchange.tensors import (
    WeightFile,
    as_stored,
    check_dtype,
    open_weight_file,
    write_weight_file,
)
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig

SUFFIX = ".bitmask.safetensors"
_FORMAT, _VERSION = "ragjax-bitmask", "1"
_BITS, _VALUES = ".bits", ".values"


class BitmaskTensors:
    """The open weights of such files.

    Attributes:
      shapes: shape of each tensor, by name.
      dtypes: type of each, as safetensors calls it.
    """

    def __init__(self, files: list[WeightFile]):
        self._places: dict[str, WeightFile] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in files:
            shapes = json.loads(file.metadata["shapes"])
            for name, shape in shapes.items():
                stored = name + _VALUES if name + _VALUES in file.header else name
                self._places[name] = file
                self.shapes[name] = tuple(shape)
                self.dtypes[name] = file.header[stored]["dtype"]

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, zeros and all, in the type they are stored in."""
        file, shape = self._places[name], self.shapes[name]
        if name in file.header:
            return file.read(name)
        values = file.read(name + _VALUES)
        whole = np.zeros(int(np.prod(shape)), values.dtype)
        whole[unpack(file.read(name + _BITS), whole.size)] = values
        return whole.reshape(shape)


def open_bitmask(folder: Path) -> BitmaskTensors | None:
    """The compressed weights in a folder; none where there are no such files.

    Raises:
      InputError: names every file that is damaged or of a later version.
    """
    paths = sorted(folder.glob("*" + SUFFIX))
    if not paths:
        return None
    files = [open_weight_file(path) for path in paths]
    wrong = [problem for path, file in zip(paths, files, strict=True) for problem in _problems(path, file)]
    if wrong:
        raise InputError(f"{folder}: weights as bitmasks cannot be read:\n{listing(wrong)}")
    return BitmaskTensors(files)


def _problems(path: Path, file: WeightFile) -> list[str]:
    stated = file.metadata.get("format"), file.metadata.get("version")
    if stated != (_FORMAT, _VERSION):
        return [
            f"{path.name}: {_FORMAT} of version {_VERSION} was expected, found {stated[0]} of {stated[1]}"
        ]
    found = []
    for name, shape in json.loads(file.metadata["shapes"]).items():
        size = int(np.prod(shape))
        if name in file.header:
            continue
        if not {name + _BITS, name + _VALUES} <= file.header.keys():
            found.append(f"{path.name}: {name} is missing")
            continue
        bits = file.read(name + _BITS)
        if bits.size != -(-size // 8):
            found.append(f"{path.name}: {name} needs {-(-size // 8)} bytes of bits, found {bits.size}")
        elif (ones := int(np.bitwise_count(bits).sum())) != (kept := file.header[name + _VALUES]["shape"][0]):
            found.append(f"{path.name}: {name} has {ones} bits for {kept} values")
    return found


def write_bitmask(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes weights compressed, holding no more than one file's.

    Args:
      folder: where to.
      shapes: shape of each tensor, by name, in the order they are written.
      read: gives the values of one.
      dtype: type they are stored in, of `STORED_DTYPES`.
      shard_bytes: size above which another file is begun.

    Raises:
      InputError: the type is not known, or values are not finite in it.
    """
    check_dtype(dtype, shard_bytes)
    bad = []

    def stored() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for name in shapes:
            values = as_stored(read(name), dtype)
            if not is_finite(values):
                bad.append(name)
            yield name, compressed(name, values)

    held: dict[str, np.ndarray] = {}
    held_shapes: dict[str, tuple[int, ...]] = {}
    number = 0

    def flush() -> None:
        nonlocal number
        number += 1
        about = {"format": _FORMAT, "version": _VERSION, "shapes": json.dumps(held_shapes)}
        if not bad:
            write_weight_file(held, folder / f"model-{number:05}{SUFFIX}", about)
        held.clear()
        held_shapes.clear()

    for name, parts in stored():
        size = sum(part.nbytes for part in parts.values())
        if held and size + sum(part.nbytes for part in held.values()) > shard_bytes:
            flush()
        held |= parts
        held_shapes[name] = tuple(shapes[name])
    flush()
    if bad:
        raise InputError(f"Weights that are not finite as {dtype} cannot be saved:\n{listing(bad)}")


def compressed(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that stand for one: its bits and its values, or itself where that is no larger.

    Args:
      name: its name.
      values: any shape, of 2 or 4 bytes each.
    """
    flat = values.reshape(-1)
    kept = flat.view(f"u{flat.itemsize}") != 0
    parts = {name + _BITS: np.packbits(kept, bitorder="little"), name + _VALUES: flat[kept]}
    return {name: values} if sum(part.nbytes for part in parts.values()) >= values.nbytes else parts


def unpack(bits: UInt8[np.ndarray, " bytes"], size: int) -> np.ndarray:
    """Booleans of the first `size` bits, the least of each byte first."""
    return np.unpackbits(bits, count=size, bitorder="little").view(bool)


def compressed_bytes(params: Params, config: DecoderConfig) -> int:
    """Bytes of a model's weights as bitmasks in float32, without headers.

    Args:
      params: its parameters.
      config: its architecture.
    """
    layout = family_for(config).layout(config)
    read = tensor_reader(params, layout)
    parts = (
        compressed(stored.name, np.ascontiguousarray(read(stored.name), np.float32))
        for stored in layout.stored
    )
    return sum(part.nbytes for of_tensor in parts for part in of_tensor.values())
