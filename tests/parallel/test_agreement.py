"""Two processes that act as two hosts: what one finds or wants, both know."""

HOST = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
host, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=host)

from pathlib import Path
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ragjax.errors import InputError
from ragjax.parallel.agreement import from_writer
from ragjax.training.checkpoints import Checkpoints
from ragjax.training.interrupts import Interrupts

assert from_writer(lambda: {"host": host, "text": "é" * 100}) == {"host": 0, "text": "é" * 100}

def refused(function):
    try:
        function()
    except InputError as error:
        return str(error)

def fail():
    raise InputError(f"host {host}")

assert refused(lambda: from_writer(fail)) == "host 0"

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
def rows(value):
    return {"w": jax.make_array_from_callback((8, 2), sharding, lambda i: np.full((8, 2), value, "f4")[i])}

def value_of(state):
    return [float(np.unique(shard.data).item()) for shard in state["w"].addressable_shards]

template = {"w": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=sharding)}
told = []
with jax.set_mesh(mesh), Checkpoints(Path(folder), keep=2, fingerprint={}, warn=told.append) as checkpoints:
    assert "in use" in refused(lambda: Checkpoints(Path(folder), keep=2, fingerprint={}))
    with Interrupts() as interrupts:
        for step in range(1, 10):
            stop = interrupts.requested()
            if stop:
                break
            checkpoints.save(step, rows(step), loss=-step)
            if step == 3 and host == 1:
                os.kill(os.getpid(), signal.SIGTERM)
    # Asked after step 3 on one host: started at the call after it, read by both at the next.
    assert step == 5, step
    checkpoints.wait()
    assert checkpoints.losses == {3: -3, 4: -4}, checkpoints.losses
    number, state = checkpoints.restore(template)
    assert (number, value_of(state)) == (4, [4, 4])
    if host == 0:
        os.truncate(Path(folder, "4", "default", "_METADATA"), 10)
    number, state = checkpoints.restore(template)
    assert (number, value_of(state)) == (3, [3, 3])
    assert len(told) == (1 if host == 0 else 0)
print("agreed")
"""


def test_two_hosts_save_restore_and_stop_as_one(tmp_path, two_hosts):
    assert all(out.endswith("agreed\n") for out in two_hosts(HOST, str(tmp_path / "checkpoints")))
