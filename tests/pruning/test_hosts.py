"""Two processes with two devices each prune as one, and go on together with what they kept."""

import numpy as np

from ragjax.interchange.folder import save

HOST = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
host, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=host)

import numpy as np
import ragjax
from ragjax.config import Mesh, OneShot
from ragjax.parallel.hosts import to_host
from ragjax.parallel.mesh import make_mesh

class Stop(Exception):
    pass

def stop(figures):
    raise Stop

mesh, asked = make_mesh(Mesh(data=2, tensor=2)), OneShot(
    method="sparsegpt", sparsity=0.5, calibration=f"text:{folder}/*.txt", samples=4, batch_size=2,
    sequence_length=32,
)
model = ragjax.load(f"{folder}/model")

def pruned(**more):
    return ragjax.prune(model, asked, mesh=mesh, cache=f"{folder}/cache{host}", **more)

def stopped(where):
    try:
        pruned(unfinished=where, progress=stop)
    except Stop:
        return
    raise AssertionError("it went on")

expected = to_host(pruned().model.params)
stopped(f"{folder}/kept")
told = []
found = to_host(pruned(unfinished=f"{folder}/kept", progress=told.append).model.params)
assert [figures.layer for figures in told] == [1], told
same = jax.tree.map(lambda x, y: bool(np.allclose(x, y, atol=1e-6)), found, expected)
assert all(jax.tree.leaves(same)), same
assert (expected["layers"]["mlp"]["up"]["kernel"] == 0).mean() == 0.5

# A host that does not see what is kept has none go on from it.
stopped(f"{folder}/own{host}")
told.clear()
pruned(unfinished=f"{folder}/own{host}", progress=told.append)
assert [figures.layer for figures in told] == [0, 1], told
print("pruned")
"""


def test_two_hosts_go_on_as_one(tiny_byte_model, tmp_path, two_hosts):
    save(tiny_byte_model, tmp_path / "model")
    rng = np.random.default_rng(0)
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(" ".join(map(str, rng.integers(0, 500, 80))))
    assert all(out.endswith("pruned\n") for out in two_hosts(HOST, str(tmp_path)))
