"""One parameter, put together from pieces where it belongs: on its devices, in its shards."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from ragjax.interchange.sweep import copy

Index = tuple[slice, ...]

_ALIGNMENT = 64
"""Bytes: JAX takes over a host buffer that begins at a multiple of it, and copies any other."""


class _Shard(NamedTuple):
    """The part of an array that some devices hold."""

    place: Index
    devices: list[jax.Device]
    buffer: np.ndarray | list[jax.Array]
    """In the host's memory where that is the devices' own; else on the one device, in a list of one."""


class Assembly:
    """An array that is zero until its pieces are written.

    Of a piece no more is copied than what this host's devices hold of it, and nothing but the piece
    at hand is ever on the host besides what those devices keep there.

    Args:
      shape: of the whole array.
      dtype: of its values.
      sharding: which device holds which part; none: all of it on JAX's default device.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, sharding: Sharding | None = None):
        self.shape, self.sharding = shape, sharding or _default_sharding()
        self._shards: list[_Shard] = []
        for device, index in self.sharding.addressable_devices_indices_map(shape).items():
            assert index is not None
            whole = tuple(slice(*part.indices(n)[:2]) for part, n in zip(index, shape, strict=True))
            here = tuple(part.stop - part.start for part in whole)
            if not _computes_in_host_memory(device):
                zeros = jnp.zeros(here, dtype, device=device)
                self._shards.append(_Shard(whole, [device], [zeros]))
                continue
            same = next((shard for shard in self._shards if shard.place == whole), None)
            if same is None:
                self._shards.append(_Shard(whole, [device], _aligned_zeros(here, dtype)))
            else:
                same.devices.append(device)

    def write(self, piece: np.ndarray, layer: int | None = None) -> None:
        """Writes a piece at the beginning of the array, or of one of its layers.

        Args:
          piece: the values; along any axis there may be fewer than the array has room for.
          layer: index on the leading axis; none: the piece has all the axes of the array.
        """
        for index, _, buffer in self._shards:
            overlap = _overlap(index, piece.shape, layer)
            if overlap is None:
                continue
            source, target = overlap
            if isinstance(buffer, np.ndarray):
                copy(buffer[target] if layer is None else buffer[target][0], piece[source])
            else:
                start = tuple(part.start for part in target)
                values = np.asarray(piece[source], buffer[0].dtype)
                # Before the next piece is read, so that no two are held at once.
                buffer[0] = _written(buffer[0], values.reshape([p.stop - p.start for p in target]), start)
                buffer[0].block_until_ready()

    def finish(self) -> jax.Array:
        """The array; nothing may be written any more."""
        held = [
            jax.device_put(buffer, device) if isinstance(buffer, np.ndarray) else buffer[0]
            for _, devices, buffer in self._shards
            for device in devices
        ]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, held)


def _computes_in_host_memory(device: jax.Device) -> bool:
    return device.platform == "cpu"


def _default_sharding() -> Sharding:
    (device,) = jnp.zeros(()).devices()
    return SingleDeviceSharding(device)


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _overlap(index: Index, shape: tuple[int, ...], layer: int | None) -> tuple[Index, Index] | None:
    """What of a piece of `shape` lies in the part at `index`: where in the piece, where in the part."""
    leading: Index = ()
    if layer is not None:
        if not index[0].start <= layer < index[0].stop:
            return None
        leading = (slice(layer - index[0].start, layer - index[0].start + 1),)
        index = index[1:]
    ends = [min(part.stop, size) for part, size in zip(index, shape, strict=True)]
    if any(end <= part.start for part, end in zip(index, ends, strict=True)):
        return None
    source = tuple(slice(part.start, end) for part, end in zip(index, ends, strict=True))
    target = tuple(slice(0, end - part.start) for part, end in zip(index, ends, strict=True))
    return source, leading + target


@partial(jax.jit, donate_argnums=0)
def _written(array: jax.Array, values: jax.Array, start: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(array, values, start)
