"""A .npy file that grows: rows of numbers written as they come, with bounded memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import DTypeLike


class ArrayFile:
    """Writes a one-dimensional array to a .npy file, part by part; the header is set when it closes.

    Args:
      path: the file.
      dtype: type of the numbers.
    """

    def __init__(self, path: Path, dtype: DTypeLike):
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._file = path.open("wb")
        self._header()

    def append(self, values: np.ndarray) -> None:
        """Writes `values` after what is there."""
        self._file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.length += len(values)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # NumPy leaves room in the header for the first axis to grow.
            self._file.seek(0)
            self._header()
        self._file.close()

    def _header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.length,),
            },
        )
