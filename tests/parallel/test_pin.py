import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.config import Distill, Mesh
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import BATCH_AXES, batch_shards, make_mesh
from ragjax.parallel.pin import pin_batch
from ragjax.parallel.rules import place


@pytest.mark.parametrize("layout", [(1, 8, 1), (2, 4, 1), (2, 2, 2)])
def test_no_device_ever_holds_the_activations_of_the_whole_batch(tiny_config, layout):
    """Weights travel to the batch, not the batch to the weights."""
    rows, seq = 8, 24
    mesh = make_mesh(Mesh(*layout))
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    ids = jax.device_put(jnp.ones((rows, seq), jnp.int32), sharding)
    batch = Batch(ids, ids, ids.astype(jnp.float32), None, None)
    objective = Objective(tiny_config, tiny_config, Distill(), shards=batch_shards(mesh))
    params = place(init_params(tiny_config, 0), mesh)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        program = gradient.lower(params, params, batch, batch.weights).compile().as_text()
    whole = [
        line.strip()[:120]
        for line in program.splitlines()
        if re.search(rf"f32\[{rows},{seq},\d+\S* (all-reduce|all-gather|all-to-all)", line)
    ]
    assert re.search("all-reduce|reduce-scatter", program)
    assert not whole, whole


def test_without_a_mesh_and_where_the_batch_does_not_divide_nothing_is_pinned():
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(pin_batch(x), x)
    with jax.set_mesh(make_mesh(Mesh(data=8))):
        np.testing.assert_array_equal(jax.jit(pin_batch)(x), x)
