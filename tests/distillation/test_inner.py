"""Which layers of two networks are compared, and how their widths are brought together."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Distill, Mesh
from ragjax.data.batches import Batch
from ragjax.distillation.inner import inner_problems
from ragjax.distillation.objective import Objective
from ragjax.distillation.projections import with_projections, without_projections
from ragjax.distillation.relations import relation_kl
from ragjax.models.blockwise import one_layer, queries_keys_values
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import Rotary
from ragjax.models.run import run_decoder
from ragjax.parallel.mesh import BATCH_AXES, batch_shards, make_mesh
from ragjax.parallel.rules import place

HIDDEN = Distill(forward_kl=0.0, cross_entropy=0.0, hidden_mse=1.0, hidden_cosine=0.5)
RELATIONS = Distill(forward_kl=0.0, cross_entropy=0.0, relations=1.0)


@pytest.fixture(scope="module")
def wide(tiny_config):
    """A deeper and wider teacher that shares keys and values between heads, and turns them."""
    return replace(
        tiny_config, layers=5, width=48, heads=6, kv_heads=2, mlp_width=40, rotary=Rotary(),
        learned_positions=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(wide, random_model):
    return random_model(wide).params


@pytest.fixture(scope="module")
def batch(tiny_config):
    """Two documents in each sequence; tokens of unlike weight."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, tiny_config.vocab_size, (8, 13)).astype(np.int32)
    weights = rng.random((8, 12)).astype(np.float32)
    segments = np.repeat([[0, 1]], [5, 7], axis=1).repeat(8, 0)
    places = np.concatenate([np.arange(5), np.arange(7)])[None].repeat(8, 0)
    return Batch(text[:, :-1], text[:, 1:], weights / weights.sum(), segments, places)


def ran(config, params, batch, dtype=jnp.float32):
    places = {"positions": batch.positions, "segments": batch.segments}
    return run_decoder(config, params, batch.tokens, capture=True, dtype=dtype, **places)


def begin(tiny_config, wide, weights):
    return with_projections(init_params(tiny_config, 0), tiny_config, wide, weights, seed=3)


def loss_of(tiny_config, wide, weights, **options):
    return jax.jit(Objective(tiny_config, (wide,), weights, **options))


@pytest.mark.parametrize(
    ("layer_map", "pairs"),
    [
        ("uniform", [(0, 1), (1, 3), (2, 4)]),
        ("last", [(0, 2), (1, 3), (2, 4)]),
        ((-1, 4, 0), [(1, 4), (2, 0)]),
    ],
)
def test_each_layer_answers_to_its_own_through_its_own_projection(
    tiny_config, wide, teacher, batch, layer_map, pairs
):
    weights = replace(HIDDEN, layer_map=layer_map)
    params = begin(tiny_config, wide, weights)
    kernels = np.asarray(params["projections"]["hidden"], np.float64)
    assert kernels.shape == (len(pairs), 32, 48)
    own, others = (
        np.asarray(ran(config, given, batch).layers, np.float64)
        for config, given in ((tiny_config, params), (wide, teacher))
    )
    turned = np.stack([own[i] @ kernel for (i, _), kernel in zip(pairs, kernels, strict=True)])
    answered = np.stack([others[j] for _, j in pairs])
    cosine = (turned * answered).sum(-1)
    cosine /= np.linalg.norm(turned, axis=-1) * np.linalg.norm(answered, axis=-1)
    expected = {
        "hidden_mse": (np.square(turned - answered).mean((0, 3)) * batch.weights).sum(),
        "hidden_cosine": ((1 - cosine).mean(0) * batch.weights).sum(),
    }
    loss, terms = loss_of(tiny_config, wide, weights)(params, (teacher,), batch, batch.weights)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5)
    np.testing.assert_allclose(loss, expected["hidden_mse"] + 0.5 * expected["hidden_cosine"], rtol=1e-5)


@pytest.mark.parametrize(("layers", "compared"), [(None, (2, 4)), ((0, 0), (0, 0)), ((1, 2), (1, 2))])
def test_relations_are_of_one_layer_of_each(tiny_config, wide, teacher, batch, layers, compared):
    weights = replace(RELATIONS, relation_layers=layers, relation_heads=4)
    params = init_params(tiny_config, 0)
    vectors = []
    for (config, given), layer in zip(((tiny_config, params), (wide, teacher)), compared, strict=True):
        out = ran(config, given, batch)
        before = out.layers[layer - 1] if layer else out.embedded
        vectors.append(queries_keys_values(config, one_layer(given["layers"], layer), before))
    expected = relation_kl(*vectors, batch.weights, heads=4, segments=batch.segments)
    loss, terms = loss_of(tiny_config, wide, weights)(params, (teacher,), batch, batch.weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert terms["relations"] == loss > 0


def test_relations_have_the_teachers_heads_where_none_are_said(
    tiny_config, wide, teacher, batch, random_model
):
    wider = replace(tiny_config, width=24, heads=2)
    params = random_model(wider).params

    def loss(heads):
        weights = replace(RELATIONS, relation_heads=heads)
        return loss_of(wider, wide, weights)(params, (teacher,), batch, batch.weights)[0]

    assert loss(None) == loss(6)
    assert loss(None) != loss(2)


@pytest.mark.parametrize("weights", [HIDDEN, RELATIONS], ids=["hidden", "relations"])
def test_the_gradient_goes_to_the_student_and_its_projections_alone(
    tiny_config, wide, teacher, batch, weights
):
    weights = replace(weights, relation_heads=4)
    params = begin(tiny_config, wide, weights)
    objective = Objective(tiny_config, (wide,), weights)
    both = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))
    (own, (others,)), _ = both(params, (teacher,), batch, batch.weights)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))
    assert np.any(own["layers"]["attention"]["query"]["kernel"][0])
    if weights.relations:
        assert "projections" not in own
        # The layer compared is not run to its end.
        assert np.any(own["layers"]["attention"]["key"]["kernel"][-1])
        assert not np.any(own["layers"]["mlp"]["up"]["kernel"][-1])
    else:
        assert all(np.any(kernel) for kernel in own["projections"]["hidden"])
    # Against the loss itself, along a random way.
    rng = np.random.default_rng(5)
    way = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    along = sum(
        (np.asarray(g, np.float64) * w).sum() for g, w in zip(*map(jax.tree.leaves, (own, way)), strict=True)
    )
    value = jax.jit(lambda at: objective(at, (teacher,), batch, batch.weights)[0])
    ahead, behind = (
        float(value(jax.tree.map(lambda x, w, s=size: x + s * w, params, way))) for size in (1e-3, -1e-3)
    )
    np.testing.assert_allclose((ahead - behind) / 2e-3, along, rtol=2e-2)


def test_no_projection_is_there_where_none_is_needed(tiny_config, wide):
    params = init_params(tiny_config, 0)
    same = partial(with_projections, params, tiny_config, seed=0)
    assert same(replace(tiny_config, layers=5), HIDDEN) is params
    assert same(None, HIDDEN) is params
    assert same(wide, RELATIONS) is params
    assert same(wide, Distill()) is params
    added = same(wide, HIDDEN)
    assert added.keys() - params.keys() == {"projections"}
    assert without_projections(added).keys() == params.keys()
    # As long as the states they are given.
    states = np.random.default_rng(0).normal(size=(2000, 32))
    turned = states @ np.asarray(added["projections"]["hidden"][0])
    assert np.square(turned).mean() == pytest.approx(np.square(states).mean(), rel=0.1)


def test_weights_of_inner_losses_may_change_along_the_training(tiny_config, batch):
    params = (init_params(tiny_config, 0), (init_params(tiny_config, 1),))
    weights = replace(HIDDEN, hidden_mse=(0.0, 2.0), hidden_cosine=0.0)
    run = loss_of(tiny_config, tiny_config, weights, steps=11)
    for step in (0, 5, 10):
        loss, terms = run(*params, batch, batch.weights, step=jnp.int32(step))
        np.testing.assert_allclose(loss, step / 5 * terms["hidden_mse"], rtol=1e-6)


def test_of_several_teachers_the_first_is_looked_into(tiny_config, wide, teacher, batch):
    params = begin(tiny_config, wide, HIDDEN)
    alone, _ = loss_of(tiny_config, wide, HIDDEN)(params, (teacher,), batch, batch.weights)
    both = Objective(tiny_config, (wide, tiny_config), HIDDEN)
    found, _ = jax.jit(both)(params, (teacher, init_params(tiny_config, 9)), batch, batch.weights)
    np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_both_networks_are_compared_in_the_type_they_compute_in(tiny_config, wide, teacher, batch):
    weights = replace(HIDDEN, relations=1.0, relation_heads=4)
    params = begin(tiny_config, wide, weights)
    exact, _ = loss_of(tiny_config, wide, weights)(params, (teacher,), batch, batch.weights)
    half = loss_of(tiny_config, wide, weights, dtype=jnp.bfloat16)
    found, _ = half(params, (teacher,), batch, batch.weights)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-2)


def test_eight_devices_equal_one(tiny_config, wide, teacher, batch):
    weights = replace(HIDDEN, relations=1.0, relation_heads=4)
    params = begin(tiny_config, wide, weights)
    gradient = jax.value_and_grad(Objective(tiny_config, (wide,), weights), has_aux=True)
    (expected, _), slopes = jax.jit(gradient)(params, (teacher,), batch, batch.weights)
    mesh = make_mesh(Mesh(2, 2, 2))
    with jax.set_mesh(mesh):
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(BATCH_AXES))
        objective = Objective(tiny_config, (wide,), weights, shards=batch_shards(mesh))
        given = place(params, mesh), (place(teacher, mesh),), jax.device_put(batch, spread)
        kernel = given[0]["projections"]["hidden"]
        assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
        both = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (found, _), shared = both(*given, given[2].weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5 * scale), shared, slopes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_map": (0, 1)}, "each of the student's 3 layers, found 2"),
        ({"layer_map": (0, 1, 5)}, "layers of the teacher, 0 to 4, found 5"),
        ({"relation_layers": (3, 0)}, "a layer of the student, 0 to 2, found 3"),
        ({"relation_layers": (0, -1)}, "a layer of the teacher, 0 to 4, found -1"),
        ({"relation_heads": 5}, "32 in the student and 48 in the teacher, found 5"),
        ({"relation_heads": None}, "32 in the student and 48 in the teacher, found 6"),
    ],
)
def test_what_cannot_be_compared_is_said(tiny_config, wide, change, said):
    weights = replace(HIDDEN, relations=1.0, **{"relation_heads": 4, **change})
    (problem,) = inner_problems(tiny_config, wide, weights)
    assert said in problem
    # What is not asked for cannot be wrong.
    unasked = {"hidden_mse": 0.0, "hidden_cosine": 0.0, "relations": 0.0, "cross_entropy": 1.0}
    assert inner_problems(tiny_config, wide, replace(weights, **unasked)) == []
