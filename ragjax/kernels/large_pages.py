"""Arrays in large pages of memory.

The matrices that a step reads lie on tens of thousands of pages of 4 KB, and a core forgets where each is
long before it is read again. Pages of 2 MB are few.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TypeVar

import jax
import numpy as np

_PAGE = 1 << 21
_CHUNK = 16 * _PAGE
_LINE = 64
"""Bytes at a multiple of which XLA wants an array to begin."""
T = TypeVar("T")


class LargePages:
    """Room for arrays, one behind the other; each stretch of it lives as long as any array there."""

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def hold(self, tree: T) -> T:
        """The same arrays in large pages, where the system has some; what is not an array of numbers on one
        CPU stays where it is.

        Args:
          tree: any tree of arrays.
        """
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return tree
        return jax.tree.map(lambda leaf: self._held(leaf) if _movable(leaf) else leaf, tree)

    def _held(self, array: jax.Array) -> jax.Array:
        room = self._taken(array.nbytes).view(array.dtype).reshape(array.shape)
        np.copyto(room, np.asarray(array))
        # JAX takes the memory as it is. Arrays that were not told where to lie tell programs nothing either.
        if array.committed:
            return jax.device_put(room, array.sharding)
        (device,) = array.devices()
        with jax.default_device(device):
            return jax.device_put(room)

    def _taken(self, size: int) -> np.ndarray:
        if size > len(self._free):
            self._free = _advised(max(size, _CHUNK))
        taken, self._free = self._free[:size], self._free[-(-size // _LINE) * _LINE :]
        return taken


def _movable(leaf: object) -> bool:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not leaf.size:
        return False
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) or leaf.weak_type:
        return False
    devices = leaf.devices()
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)


def _advised(size: int) -> np.ndarray:
    """So many bytes from the start of a large page on, which the system lends when they are first written.

    No less than whole pages: a part of one at the end would be of small ones.
    """
    lent = mmap.mmap(-1, size + 2 * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # the system may have none after all
        lent.madvise(mmap.MADV_HUGEPAGE)
    room = np.frombuffer(lent, np.uint8)
    return room[-room.ctypes.data % _PAGE :]
