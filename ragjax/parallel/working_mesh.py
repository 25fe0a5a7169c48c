"""The mesh of a verb that one device can do, and several do faster."""

from __future__ import annotations

import math

import jax

from ragjax.config import Mesh as MeshConfig
from ragjax.parallel.mesh import make_mesh


def working_mesh(devices: MeshConfig) -> jax.sharding.Mesh | None:
    """As many devices as were asked for, while the rest stand by; none for a single one, which needs no mesh.

    Args:
      devices: sizes of the axes; with a -1 among them all devices work.

    Raises:
      InputError: there are not as many devices.
    """
    sizes = (devices.data, devices.fsdp, devices.tensor)
    if sizes == (1, 1, 1):
        return None
    count = None if -1 in sizes else math.prod(sizes)
    return make_mesh(devices, jax.devices()[:count])
