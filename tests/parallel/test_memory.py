import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from ragjax.config import Mesh, Sparsity, Train
from ragjax.models.decoder import init_params
from ragjax.parallel.memory import bytes_per_chip, training_bytes_per_chip
from ragjax.parallel.mesh import AXES, make_mesh
from ragjax.parallel.rules import place
from ragjax.sparsity import sparsify
from ragjax.training.optimizer import make_optimizer
from ragjax.training.state import init_state


def on_first_device(tree):
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (8, 1, 1)])
def test_the_bytes_are_those_a_device_holds(tiny_config, sizes):
    mesh = make_mesh(Mesh(*sizes))
    optimizer = sparsify(make_optimizer(Train()), Sparsity(target=0.5), total_steps=300, seed=0)
    params = init_params(tiny_config, 0)
    state = init_state(params, optimizer, mesh)
    teacher = place(params, mesh)

    shapes = jax.eval_shape(lambda: init_params(tiny_config, 0))
    told = training_bytes_per_chip(shapes, optimizer, AbstractMesh(sizes, AXES), teacher=shapes)
    assert told.parameters == told.gradients == told.teacher == on_first_device(teacher)
    assert told.moments + told.masks == on_first_device(state.opt_state)
    assert told.masks == on_first_device(state.opt_state.pruning.masks)


def test_half_as_wide_a_type_takes_half_the_bytes(tiny_config):
    mesh = AbstractMesh((1, 2, 2), AXES)
    wide = jax.eval_shape(lambda: init_params(tiny_config, 0))
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), wide)
    assert 2 * bytes_per_chip(narrow, mesh) == bytes_per_chip(wide, mesh)


def test_without_a_teacher_none_is_counted(tiny_config):
    shapes = jax.eval_shape(lambda: init_params(tiny_config, 0))
    told = training_bytes_per_chip(shapes, make_optimizer(Train()), AbstractMesh((1, 1, 1), AXES))
    assert told.teacher == told.masks == 0
    # Two moments each, and the count of steps, twice.
    assert told.moments == 2 * told.parameters + 8
