import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.config import Mesh
from ragjax.interchange import assembly
from ragjax.interchange.assembly import Assembly
from ragjax.parallel.mesh import make_mesh

PIECES = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)


@pytest.fixture(params=["host memory", "device memory"])
def memory(request, monkeypatch):
    if request.param == "device memory":
        monkeypatch.setattr(assembly, "_computes_in_host_memory", lambda device: False)


def assemble(shape, sharding, pieces, dtype=np.float32):
    made = Assembly(shape, dtype, sharding)
    for layer, piece in enumerate(pieces):
        made.write(piece, layer)
    return made.finish()


@pytest.mark.parametrize(
    "axes",
    [(), (None, "fsdp", "tensor"), (None, "tensor", None), ("data",), (("data", "fsdp"), None, "tensor")],
)
def test_layers_come_together_in_every_split(axes, memory):
    sharding = NamedSharding(make_mesh(Mesh(data=2, fsdp=2, tensor=2)), PartitionSpec(*axes))
    made = assemble(PIECES.shape, sharding, PIECES)
    assert made.sharding == sharding
    np.testing.assert_array_equal(made, PIECES)


def test_what_no_piece_fills_is_zero(memory):
    sharding = NamedSharding(make_mesh(Mesh(fsdp=8)), PartitionSpec("fsdp"))
    made = Assembly((16, 3), np.float32, sharding)
    made.write(np.ones((5, 2), np.float32))
    expected = np.zeros((16, 3))
    expected[:5, :2] = 1
    np.testing.assert_array_equal(made.finish(), expected)


def test_without_a_sharding_all_of_it_is_on_the_default_device(memory):
    with jax.default_device(jax.devices()[3]):
        made = assemble(PIECES.shape, None, PIECES)
    assert made.devices() == {jax.devices()[3]}
    assert assemble(PIECES.shape, None, PIECES).devices() == {jax.devices()[0]}


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_types_are_converted_on_the_way(stored, wanted, memory):
    made = assemble(PIECES.shape, None, PIECES.astype(stored), wanted)
    assert made.dtype == wanted
    np.testing.assert_array_equal(made, PIECES.astype(stored).astype(wanted))


def test_host_memory_is_taken_over_not_copied():
    made = Assembly((1000, 1000), np.float32)
    [shard] = made._shards
    assert made.finish().unsafe_buffer_pointer() == shard.buffer.ctypes.data


FORK = """
import os, signal
import numpy as np
from ragjax.interchange.assembly import copy
values = np.ones((8, 1 << 20), np.float32)
copy(np.empty_like(values), values)
child = os.fork()
if child == 0:
    signal.alarm(20)
    target = np.empty_like(values)
    copy(target, values)
    os._exit(0 if (target == 1).all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_copy_too():
    # A pool of threads that outlives its call would wait in the child for threads that are not there.
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORK]).returncode == 0
