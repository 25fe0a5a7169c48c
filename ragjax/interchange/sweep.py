"""Passes over arrays as large as memory allows: cut into pieces that the processor's cores share."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_PIECE = 1 << 22
"""Bytes a core takes at once."""
_COLUMNS = 16
"""As many columns are copied together as values lie in the memory the processor fetches for one."""
_MOST_CORES = 8


def is_finite(values: np.ndarray) -> bool:
    """Whether no value is infinite or not a number."""
    return all(_share(lambda part: _is_finite(values[part]), values, axis=0))


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Writes `source` over `target`, of the same shape, converted to its type.

    A transposed source is read a few columns at a time, so that whatever is fetched is used before it is
    dropped.
    """
    if source.ndim < 2 or source.strides[-1] <= source.strides[-2]:
        _share(lambda part: np.copyto(target[part], source[part], casting="unsafe"), source, axis=0)
        return

    def columns(part: slice) -> None:
        for start in range(part.start, part.stop, _COLUMNS):
            few = slice(start, min(start + _COLUMNS, part.stop))
            # Converted as it lies in memory, which is faster than on the way across.
            np.copyto(target[..., few], source[..., few].astype(target.dtype, copy=False))

    _share(columns, source, axis=-1)


def _is_finite(values: np.ndarray) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        # Nothing that is not finite leaves a sum finite, and a sum needs no array of answers.
        return bool(np.isfinite(values.sum(dtype=np.float32)) or np.isfinite(values).all())


def _share(function: Callable[[slice], T], array: np.ndarray, *, axis: int) -> list[T]:
    """The results of `function` for slices along an axis that together are all of it."""
    size = array.shape[axis]
    step = max(1, size * _PIECE // max(1, array.nbytes))
    parts = [slice(start, min(start + step, size)) for start in range(0, size, step)]
    if len(parts) < 2:
        return [function(part) for part in parts]
    # NumPy lets go of the interpreter while it works, so that threads run side by side.
    with ThreadPoolExecutor(min(_cores(), len(parts)), thread_name_prefix="sweep") as threads:
        return list(threads.map(function, parts))


def _cores() -> int:
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_CORES, free)
