"""The mesh of devices: (data, fsdp, tensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from ragjax.config import Mesh as MeshConfig
from ragjax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""The axes a batch is split over."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Lays the devices out as `config` says, for GSPMD.

    Args:
      config: sizes of the axes; one may be -1 and takes what is left.
      devices: the devices to use; none: all of them.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(config, len(devices))
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    if devices == jax.devices():
        return jax.make_mesh(sizes, AXES, axis_types=auto)
    return jax.sharding.Mesh(np.array(devices).reshape(sizes), AXES, axis_types=auto)


def axis_sizes(config: MeshConfig, count: int | None) -> tuple[int, ...]:
    """Devices along each axis.

    Args:
      config: sizes of the axes; one may be -1 and takes what is left.
      count: devices; none: as many as `config` names, -1 being one.

    Raises:
      InputError: the sizes do not multiply to the number of devices.

    Example:
      >>> axis_sizes(MeshConfig(data=-1, fsdp=4), 8)
      (2, 4, 1)
    """
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    count = known if count is None else count
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        layout = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError(
            f"The mesh must use all {count} devices, found {layout}: "
            f"set mesh.data, mesh.fsdp and mesh.tensor so that their product is {count}, "
            "or one of them to -1."
        )
    return tuple(sizes)


def batch_shards(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """How many parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
