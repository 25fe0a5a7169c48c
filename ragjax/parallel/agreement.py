"""What one host knows, made known to all: a result of the writing host, and a wish of any."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ragjax.errors import InputError
from ragjax.parallel.hosts import is_writer


def from_writer(function: Callable[[], Any]) -> Any:
    """The result of `function`, which runs on the writing host alone, on every host.

    All hosts call it at the same point of the program; it waits for the devices.

    Args:
      function: returns a JSON value.

    Raises:
      InputError: `function` raised it; on every host.
      OSError: likewise.
    """
    if jax.process_count() == 1:
        return function()
    told: dict[str, Any] = {}
    if is_writer():
        try:
            told = {"result": function()}
        except InputError as error:
            told = {"input_error": str(error)}
        except OSError as error:
            told = {"os_error": [error.errno, error.strerror or str(error)]}
    told = json.loads(_broadcast(json.dumps(told)))
    if "input_error" in told:
        raise InputError(told["input_error"])
    if "os_error" in told:
        raise OSError(*told["os_error"])
    return told["result"]


def _broadcast(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    sent = data if is_writer() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes().decode()


class AnyHost:
    """Whether any host says yes, answered alike on all hosts at the same call.

    The answer is one call late: a call starts the reduction and reads the one started by the call
    before, which the devices have finished in the meantime, so that no host waits. All hosts call it
    equally often. With one host the answer is its own, and immediate.
    """

    def __init__(self) -> None:
        self._started: jax.Array | None = None

    def __call__(self, mine: bool) -> bool:
        """Says `mine` and returns what any said."""
        if jax.process_count() == 1:
            return mine
        devices = np.array(jax.devices())
        mesh = Mesh(devices, ("device",), axis_types=(AxisType.Auto,))
        with jax.set_mesh(mesh):
            said = jax.make_array_from_callback(
                devices.shape,
                NamedSharding(mesh, PartitionSpec("device")),
                lambda index: np.full(devices[index].shape, mine),
            )
            before, self._started = self._started, _any(said)
        return before is not None and bool(before)


@jax.jit
def _any(said: jax.Array) -> jax.Array:
    # Replicated by its shape: a scalar has no axis to split.
    return said.any()
