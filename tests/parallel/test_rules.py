import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ragjax.config import Mesh, Sparsity
from ragjax.errors import InputError
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.names import path_name
from ragjax.models.run import run_decoder
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import RULES, check_divisible, partition, place, shardings
from ragjax.sparsity import sparsify

GPT2_XL = DecoderConfig(vocab_size=50257, positions=1024, width=1600, layers=48, heads=25, mlp_width=6400)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(Mesh(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_a_rule_of_its_own_rank(tied):
    params = jax.eval_shape(lambda: init_params(dataclasses.replace(GPT2_XL, tied=tied), 0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        rules = [axes for pattern, axes in RULES if re.search(pattern, path_name(path))]
        assert rules, path_name(path)
        assert len(rules[0]) in (0, len(leaf.shape)), path_name(path)


@pytest.mark.parametrize(("sizes", "axes"), [((1, 16, 1), {"fsdp"}), ((1, 2, 8), {"fsdp", "tensor"})])
def test_gpt2_xl_divides_on_sixteen_chips(sizes, axes):
    """No matrix is left whole: 1.5B parameters in float32 take 1/16 of their bytes on each chip."""
    mesh = jax.sharding.AbstractMesh(sizes, ("data", "fsdp", "tensor"))
    params = jax.eval_shape(lambda: init_params(GPT2_XL, 0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if leaf.size > 2e6:
            assert axes <= set(partition(name, leaf.shape, mesh)), name
        elif name == "embedding/positions":
            assert partition(name, leaf.shape, mesh) == PartitionSpec(None, "fsdp")


def test_tensor_parallel_blocks_are_reduced_once_a_branch(tiny_config):
    """And the embedding once; nothing is gathered (Shoeybi et al., https://arxiv.org/abs/1909.08053)."""
    mesh = make_mesh(Mesh(tensor=4), jax.devices()[:4])
    params = place(init_params(tiny_config, 0), mesh)
    with jax.set_mesh(mesh):
        forward = jax.jit(lambda params, tokens: run_decoder(tiny_config, params, tokens).hidden)
        program = forward.lower(params, jnp.ones((2, 16), jnp.int32)).compile().as_text()
    talk = re.findall(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\(", program)
    assert talk == ["all-reduce"] * 3
    table = PartitionSpec("tensor", "fsdp")
    assert partition("head", (384, 32), mesh) == partition("embedding/tokens", (384, 32), mesh) == table


def test_moments_and_masks_follow_their_parameter(mesh, tiny_config):
    params = init_params(tiny_config, 0)
    optimizer = sparsify(optax.adamw(1e-3), Sparsity(target=0.5), total_steps=10, seed=0)
    state = place(optimizer.init(params), mesh)
    spec = PartitionSpec(None, "fsdp", "tensor")
    up = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if path_name(path).endswith("layers/mlp/up/kernel")
    ]
    assert up == [spec] * 3


def test_an_axis_that_does_not_divide_is_left_out(mesh):
    assert partition("layers/mlp/up/kernel", (3, 5, 8), mesh) == PartitionSpec(None, None, "tensor")


def test_a_factored_moment_is_kept_whole(mesh):
    assert partition("v_row/layers/mlp/up/kernel", (3, 32), mesh) == PartitionSpec()


def test_placing_changes_no_value(mesh, tiny_model):
    placed = place(tiny_model.params, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, tiny_model.params)
    assert (
        placed["layers"]["mlp"]["up"]["kernel"].sharding
        == shardings(placed, mesh)["layers"]["mlp"]["up"]["kernel"]
    )


def test_indivisible_sizes_are_all_named(mesh):
    odd = dataclasses.replace(GPT2_XL, mlp_width=6401)
    with pytest.raises(InputError) as refused:
        check_divisible(odd, mesh, batch_size=3)
    assert str(refused.value).startswith(
        "Not divisible: 25 attention heads over mesh.tensor 2; 6401 MLP neurons over mesh.tensor 2; "
        "3 sequences of a microbatch over mesh.data x mesh.fsdp = 4."
    )
    check_divisible(dataclasses.replace(odd, heads=20, mlp_width=6400), mesh, batch_size=8)
