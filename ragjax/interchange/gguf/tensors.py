"""The weights in a GGUF file, dequantized one tensor at a time."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from ragjax.errors import InputError, listing
from ragjax.interchange.gguf.head import Head, Place
from ragjax.interchange.gguf.package import gguf_package

_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_CHUNK = 1 << 20
"""Values that are dequantized at once."""


class GgufTensors:
    """The open weights of a GGUF file.

    Attributes:
      shapes: shape of each tensor, by name.
      dtypes: type of what `read` gives: F32 for quantized weights.
      kinds: type they are stored in, as in "Q4_1".
    """

    def __init__(self, path: Path, head: Head):
        """Opens the weights of a file.

        Args:
          path: the file.
          head: its head.

        Raises:
          InputError: the file is cut off, or weights are of types that cannot be read; names them all.
        """
        gguf = gguf_package()
        names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
        self.kinds = {name: names.get(place.kind, str(place.kind)) for name, place in head.tensors.items()}
        self.shapes = {name: place.shape for name, place in head.tensors.items()}
        self.dtypes = {name: kind if kind in _PLAIN else "F32" for name, kind in self.kinds.items()}
        self._tensors = head.tensors
        self._bytes = np.memmap(path, np.uint8, mode="r")
        _check_kinds(path, self.kinds)
        self._check_places(path)

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor; where they are quantized, as float32."""
        place, kind = self._tensors[name], self.kinds[name]
        stored = self._bytes[place.begin : place.begin + _size(place)]
        if kind in _PLAIN:
            return stored.view(_PLAIN[kind]).reshape(place.shape)
        gguf = gguf_package()
        rows = stored.reshape(math.prod(place.shape[:-1]), -1)
        made = np.empty((len(rows), place.shape[-1]), np.float32)
        step = max(1, _CHUNK // place.shape[-1])
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            # Who reads them says what is not finite.
            with np.errstate(over="ignore", invalid="ignore"):
                made[some] = gguf.dequantize(rows[some], gguf.GGMLQuantizationType[kind])
        return made.reshape(place.shape)

    def _check_places(self, path: Path) -> None:
        problems = []
        for name, place in self._tensors.items():
            values, _ = _block(place.kind)
            if not place.shape or math.prod(place.shape) == 0 or place.shape[-1] % values:
                problems.append(f"{name}: {list(place.shape)} is no shape of {self.kinds[name]} values")
            elif place.begin + _size(place) > len(self._bytes):
                problems.append(f"{name}: ends beyond the end of the file")
        if problems:
            raise InputError(
                f"{path} is not a whole GGUF file of {len(self._bytes):,} bytes: copy or download it again:\n"
                f"{listing(problems)}"
            )


def _block(kind: int) -> tuple[int, int]:
    """Values in a block, and its bytes."""
    gguf = gguf_package()
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]


def _size(place: Place) -> int:
    values, size = _block(place.kind)
    return math.prod(place.shape) // values * size


def _check_kinds(path: Path, kinds: dict[str, str]) -> None:
    readable = {kind: _is_readable(kind) for kind in set(kinds.values())}
    bad = [f"{name}: {kind}" for name, kind in kinds.items() if not readable[kind]]
    if bad:
        raise InputError(
            f"{path} holds weights of types that cannot be read here:\n{listing(bad)}\n"
            "Give a file of another quantization, as Q8_0, Q4_K_M or F16."
        )


def _is_readable(kind: str) -> bool:
    gguf = gguf_package()
    if kind in _PLAIN:
        return True
    known = gguf.GGMLQuantizationType.__members__.get(kind)
    if known is None:
        return False
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except NotImplementedError:
        return False
    return True
