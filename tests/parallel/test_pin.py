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
from ragjax.parallel.pin import pin, pin_batch
from ragjax.parallel.rules import place


@pytest.mark.parametrize("layout", [(1, 8, 1), (2, 4, 1), (2, 2, 2)])
def test_no_device_ever_holds_the_activations_of_the_whole_batch(tiny_config, layout):
    """Weights travel to the batch, not the batch to the weights."""
    rows, seq = 8, 24
    mesh = make_mesh(Mesh(*layout))
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    ids = jax.device_put(jnp.ones((rows, seq), jnp.int32), sharding)
    batch = Batch(ids, ids, ids.astype(jnp.float32), None, None)
    objective = Objective(tiny_config, (tiny_config,), Distill(), shards=batch_shards(mesh))
    params = place(init_params(tiny_config, 0), mesh)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        program = gradient.lower(params, (params,), batch, batch.weights).compile().as_text()
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
        assert "sharding_constraint" not in str(jax.make_jaxpr(pin_batch)(x))
        assert "sharding_constraint" in str(jax.make_jaxpr(pin_batch)(jnp.ones((8, 2))))


def test_only_the_batch_axis_is_pinned():
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    x = jax.device_put(jnp.arange(32.0).reshape(8, 4), NamedSharding(mesh, PartitionSpec(None, "tensor")))
    with jax.set_mesh(mesh):
        pinned = jax.jit(pin_batch)(x)
    np.testing.assert_array_equal(pinned, x)
    assert pinned.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(BATCH_AXES, "tensor")), 2)


def test_axes_the_mesh_lacks_are_left_out():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        for function in (pin_batch, lambda x: pin(x, BATCH_AXES, ("tensor",))):
            pinned = jax.jit(function)(jnp.arange(16.0).reshape(8, 2))
            assert pinned.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), 2)
