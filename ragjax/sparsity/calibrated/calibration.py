"""A calibration text, and where it lies with the one block of the model that reads it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Int

from ragjax.models.blockwise import one_layer
from ragjax.models.decoder import Params
from ragjax.parallel.hosts import global_array, to_host
from ragjax.parallel.mesh import BATCH_AXES
from ragjax.parallel.rules import partition

_PREFIX = "layers/"


class Calibration(NamedTuple):
    """The text that shows what matters, and where it is run."""

    tokens: Int[np.ndarray, "microbatches rows seq"]
    """Token ids; the rows of a microbatch are split over data and fsdp."""
    mesh: Mesh | None = None
    """Devices that share the work; none: JAX's default device."""


def block_on_device(params: Params, layer: int, mesh: Mesh | None) -> Params:
    """The parameters of one block on the device, or split over the mesh by the rules.

    Args:
      params: of the whole model.
      layer: which block.
      mesh: the devices; none: JAX's default device.
    """
    return place_block(one_layer(params["layers"], layer), mesh)


def place_block(block: Params, mesh: Mesh | None) -> Params:
    """A block's parameters, without a layer axis, on the device, or split over the mesh by the rules."""
    if mesh is None:
        return jax.device_put(block, default_device())

    def put(name, leaf):
        return placed(leaf, NamedSharding(mesh, _partition_of_layer(name, leaf.shape, mesh)))

    flat = {name: put(name, leaf) for name, leaf in flatten_dict(block, sep="/").items()}
    return unflatten_dict(flat, sep="/")


def _partition_of_layer(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How the rules split one layer of a stacked parameter."""
    return PartitionSpec(*partition(_PREFIX + name, (1, *shape), mesh)[1:])


def placed(leaf: Any, sharding: Sharding) -> jax.Array:
    """An array that every host has whole, or all hosts together, split as told."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    host = to_host(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_device(x: np.ndarray | jax.Array, mesh: Mesh | None) -> jax.Array:
    """One microbatch on the device, or its rows split over data and fsdp."""
    if mesh is None:
        return jax.device_put(x, default_device())
    if isinstance(x, jax.Array):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
    return global_array(x.shape, lambda rows: x[rows], mesh)


def over(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Where programs know the mesh, if there is one."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def default_device() -> jax.Device:
    """The device JAX puts arrays on."""
    (device,) = jnp.zeros(()).devices()
    return device
