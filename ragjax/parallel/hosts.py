"""Several hosts as one: the start, what each feeds, and what comes back."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.parallel.mesh import BATCH_AXES

_CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "SLURM_STEP_NODELIST",
    "OMPI_MCA_orte_hnp_uri",
)


def start() -> None:
    """Joins the other hosts, where the environment says that there are any; call it before anything else.

    Cloud TPU pods, Slurm and Open MPI are found by JAX itself. Elsewhere set JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID on every host.
    """
    if jax.distributed.is_initialized():
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address and "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        )
    elif _many_hosts() or _on_tpu():
        jax.distributed.initialize()


def _many_hosts() -> bool:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts or any(
        os.environ.get(name) for name in _CLUSTER_VARIABLES if name != "TPU_WORKER_HOSTNAMES"
    )


def _on_tpu() -> bool:
    """Whether this is a TPU VM; whether it is one of several, JAX asks the metadata server."""
    devices = any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0"))
    return devices and importlib.util.find_spec("libtpu") is not None


def is_writer() -> bool:
    """Whether this host writes the run folder."""
    return jax.process_index() == 0


def global_array(
    shape: tuple[int, ...], rows: Callable[[slice], np.ndarray], mesh: jax.sharding.Mesh, *, axis: int = 0
) -> jax.Array:
    """One array over all hosts, of which each host makes only the rows its devices hold.

    Args:
      shape: shape of the whole array.
      rows: makes a slice along `axis`.
      mesh: the devices; `axis` is split over data and fsdp.
      axis: the axis that is split.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return rows(index[axis])

    return jax.make_array_from_callback(shape, sharding, part)


def to_host(tree: Any) -> Any:
    """`tree` as numpy arrays on every host, gathered where it is split over several."""

    def fetch(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        if leaf.ndim < 3:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        # Gathering makes a copy on every device: of one layer, not of all.
        whole = np.empty(leaf.shape, leaf.dtype)
        for layer in range(len(leaf)):
            whole[layer] = fetch(leaf[layer])
        return whole

    return jax.tree.map(fetch, tree)
