"""Shrinking on a mesh is shrinking on one device, with the text and the weights split."""

from functools import partial

import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.models.blockwise import layer_of
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import check_divisible, place, shardings
from ragjax.sparsity.calibrated.calibration import Calibration, block_on_device, on_device, over
from ragjax.sparsity.shrink import IMPORTANCE, Subject, cut, cut_and_refit, select, sizes_of
from ragjax.sparsity.shrink.activation_importance import _measure
from ragjax.sparsity.shrink.compensation import _gram
from ragjax.sparsity.shrink.taylor_importance import _gates
from ragjax.sparsity.shrink.weight_importance import magnitude

TEXT = np.random.default_rng(0).integers(0, 50, (2, 4, 16))
SPREAD = {"all axes": (2, 2, 2), "tensor": (1, 1, 2)}


@pytest.fixture(scope="module", params=SPREAD)
def mesh(request):
    data, fsdp, tensor = SPREAD[request.param]
    devices = jax.devices()[: data * fsdp * tensor]
    return make_mesh(Mesh(data=data, fsdp=fsdp, tensor=tensor), devices)


def four_by_two(model):
    """Sizes that two devices can split."""
    groups = 2 if model.config.kv_heads else 4
    return sizes_of(model.config)._replace(layers=2, width=16, heads=4, kv_heads=groups, mlp_width=12)


@pytest.mark.parametrize("name", IMPORTANCE)
def test_parts_are_worth_the_same(name, mesh, grouped):
    criterion, silent = IMPORTANCE[name], lambda done, of: None
    alone = criterion.measure(Subject(grouped.config, grouped.params, Calibration(TEXT)), silent)
    spread = place(grouped.params, mesh)
    together = criterion.measure(Subject(grouped.config, spread, Calibration(TEXT, mesh)), silent)
    for ours, expected in zip(together, alone, strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"], indirect=True)
def test_the_cut_model_is_the_same_and_split_by_the_rules(mesh, kin):
    kept = select(magnitude(kin.config, kin.params), kin.config, four_by_two(kin))
    spread = place(kin.params, mesh)
    alone = cut(kin.config, kin.params, kept)
    together = cut(kin.config, spread, kept, mesh)
    jax.tree.map(np.testing.assert_array_equal, together.params, alone.params)
    refit_alone = cut_and_refit(kin.config, kin.params, kept, Calibration(TEXT))
    refit = cut_and_refit(kin.config, spread, kept, Calibration(TEXT, mesh))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), refit.params, refit_alone.params)
    for name, expected in refit_alone.errors.items():
        np.testing.assert_allclose(refit.errors[name], expected, rtol=1e-3)
    for small in (together, refit):
        check_divisible(small.config, mesh, batch_size=4)
        lies = jax.tree.map(lambda leaf: leaf.sharding, small.params)
        assert lies == shardings(small.params, mesh)


def test_a_model_on_a_mesh_comes_back_to_one_device_where_none_is_named(mesh, gpt2):
    kept = select(magnitude(gpt2.config, gpt2.params), gpt2.config, four_by_two(gpt2))
    alone = cut_and_refit(gpt2.config, gpt2.params, kept, Calibration(TEXT))
    fetched = cut_and_refit(gpt2.config, place(gpt2.params, mesh), kept, Calibration(TEXT))
    jax.tree.map(np.testing.assert_array_equal, fetched.params, alone.params)
    assert {device for leaf in jax.tree.leaves(fetched.params) for device in leaf.devices()} == {
        jax.devices()[0]
    }


def operations(lowered):
    """Of one device."""
    return lowered.compile().cost_analysis()["flops"]


def operations_of_taylor(model, rows, mesh):
    params = model.params if mesh is None else place(model.params, mesh)
    with over(mesh):
        return operations(
            _gates.lower(params, on_device(TEXT.reshape(-1, 16)[:rows], mesh), config=model.config)
        )


def operations_of_one_block(model, rows, mesh):
    """Of measuring activations and of a gram."""
    block, data = block_on_device(model.params, 0, mesh), layer_of(model.config, 0)
    hidden = on_device(np.ones((rows, 16, model.config.width), np.float32), mesh)
    with over(mesh):
        measured = operations(_measure.lower(block, data, hidden, config=model.config))
        return measured + operations(_gram.lower(block, data, hidden, config=model.config, name="mlp/down"))


@pytest.mark.parametrize("of", [operations_of_taylor, operations_of_one_block])
def test_devices_that_share_the_data_do_their_share_of_the_work(of, gpt2):
    mesh = make_mesh(Mesh(data=4, fsdp=1, tensor=1), jax.devices()[:4])
    assert of(gpt2, 4, mesh) == pytest.approx(of(gpt2, 1, None), rel=0.05)


def test_where_weights_are_split_too_they_travel_to_the_sequences(gpt2):
    mesh = make_mesh(Mesh(data=1, fsdp=4, tensor=1), jax.devices()[:4])
    # And not every sequence to every device.
    assert operations_of_taylor(gpt2, 4, mesh) < 1.3 * operations_of_taylor(gpt2, 1, None)
