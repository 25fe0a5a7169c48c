"""XLA's compiler for TPUs, which needs none: it comes with libtpu."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from ragjax.errors import InputError
from ragjax.planning.chips import Slice
from ragjax.planning.hlo import Traffic, read_traffic

_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Variables libtpu reads when it starts; any slice can be compiled for all the same, by several at once."""

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compiled(NamedTuple):
    """What the compiler says of a program, on each chip."""

    bytes: int
    """All that is held at once: arguments, results, temporaries; where it was refused, at least this."""
    traffic: Traffic | None
    """None where the program was refused for its size."""


def devices(where: Slice) -> list[jax.Device]:
    """The chips of a slice as the compiler sees them.

    Raises:
      InputError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "Compiling for a TPU takes its compiler, libtpu, which is not installed; no TPU is needed. "
            "pip install 'ragjax[tpu]', or add --shapes for what follows from shapes alone."
        )
    # Or libtpu asks a server what TPU this machine has, complains of the answer, and locks it.
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(where.name, "tpu", chip_config_name=where.chip.layout)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"libtpu knows no slice {where.name}: {reason}") from None
    return list(found.devices)


def compiled(program: jax.stages.Traced) -> Compiled:
    """Compiles a program for the devices its arguments lie on.

    A program that is refused because it holds too much is one that does not fit.
    """
    try:
        made = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # "... required for HLO temporaries (19.04G) exceeds available HBM (15.75G)", and kin.
        told = re.findall(r"\b([\d.]+)([KMGT])\b", str(error).split("\n")[0])
        return Compiled(max((int(float(size) * _UNITS[unit]) for size, unit in told), default=0), None)
    memory = made.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(held + memory.temp_size_in_bytes, read_traffic(made.as_text()))
