"""The residual streams of a calibration text, between one block and the next.

They stay on a CPU, whose memory is the host's, and on accelerators that have room for them; else they wait in
the host's memory, and a microbatch goes to the device and back for each block.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ragjax.models.blockwise import first_hidden
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.hosts import to_host
from ragjax.parallel.mesh import BATCH_AXES
from ragjax.parallel.rules import place
from ragjax.sparsity.calibrated.calibration import Calibration, default_device, on_device, over

_SHARE = 1 / 4
"""Of what is free on a device: the block, its statistics and a microbatch's temporaries need the rest."""
Stream = np.ndarray | jax.Array
"""What the blocks before have made of one microbatch."""


def embedded(
    config: DecoderConfig, params: Params, calibration: Calibration
) -> list[Float[Stream, "rows seq width"]]:
    """The residual streams before the first block, one array a microbatch, where they stay or wait.

    Args:
      config: the architecture.
      params: parameters of the whole model, of which the embedding is read.
      calibration: the text.
    """
    table = {"embedding": params["embedding"]}
    mesh = calibration.mesh
    table = jax.device_put(table, default_device()) if mesh is None else place(table, mesh)
    stay = _are_here(calibration) or _have_room(config.width, calibration)
    streams: list[Stream] = []
    with over(mesh):
        for tokens in calibration.tokens:
            made = first_hidden(table, on_device(tokens, mesh), config=config)
            streams.append(on_device(made, mesh) if stay else to_host(made))
    return streams


def handed_on(
    made: Float[Array, "rows seq width"], given: Float[Stream, "rows seq width"], mesh: Mesh | None
) -> Float[Stream, "rows seq width"]:
    """What a block made, where that lies which it was given.

    Args:
      made: the residual stream after the block.
      given: the one before it.
      mesh: devices over which rows are split; none: JAX's default device.
    """
    return on_device(made, mesh) if isinstance(given, jax.Array) else to_host(made)


def _are_here(calibration: Calibration) -> bool:
    """Whether the one device is the host."""
    return calibration.mesh is None and default_device().platform == "cpu"


def _have_room(width: int, calibration: Calibration) -> bool:
    """Whether the streams stay on the devices; the same on every host."""
    mesh = calibration.mesh
    devices = [default_device()] if mesh is None else list(mesh.local_devices)
    parts = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    room = _SHARE * min(_free_bytes(device) for device in devices)
    if mesh is not None and jax.process_count() > 1:
        room = float(np.min(multihost_utils.process_allgather(np.float32(room))))
    return calibration.tokens.size * width * np.dtype(np.float32).itemsize / parts <= room


def _free_bytes(device: jax.Device) -> int:
    """What is free in a device's own memory; a CPU has none."""
    told = device.memory_stats() or {}
    return int(told.get("bytes_limit", 0)) - int(told.get("bytes_in_use", 0))
