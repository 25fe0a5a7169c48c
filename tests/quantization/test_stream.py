"""A model quantized as its blocks go by: what comes of each method, and of each block after another."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ragjax.config import Mesh
from ragjax.models.blockwise import embed, layer_of, one_layer, run_block
from ragjax.models.run import run_decoder
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.quantization.block import CALIBRATED, How
from ragjax.quantization.gptq import gptq
from ragjax.quantization.grid import rounded
from ragjax.quantization.quantized import Quantized
from ragjax.quantization.scheme import Scheme
from ragjax.quantization.stream import quantize_blocks
from ragjax.sparsity.calibrated.calibration import Calibration

sweep = jax.jit(gptq, static_argnums=2)
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 4, 12))
ALL = TOKENS.reshape(12, 12)
INT4 = Scheme(bits=4, group=8)
FEW = ("attention/out/kernel", "mlp/down/kernel")
"""Enough to see what would go wrong with any."""
SIZES = {"positions": 12, "width": 16, "heads": 4, "mlp_width": 24, "layers": 2}


@pytest.fixture(scope="module")
def model(of_kind, random_model):
    """Makes a config of a kind and parameters of it, some features of which are far larger than others."""

    def make(kind):
        config = of_kind(kind, **SIZES)
        rng = np.random.default_rng(1)

        def spread(path, leaf):
            if path[-1].key in ("scale", "bias"):
                leaf = leaf + 0.1
            return leaf * np.exp(rng.normal(size=leaf.shape[-1:])) if path[-1].key == "scale" else leaf

        params = jax.tree_util.tree_map_with_path(spread, random_model(config, 1).params)
        return config, jax.tree.map(lambda x: np.asarray(x, np.float32), params)

    return make


def names_of(params):
    return tuple(n for n in flatten_dict(one_layer(params["layers"], 0), sep="/") if n.endswith("kernel"))


def run(config, params, method, *, mesh=None, names=None, scheme=INT4, **options):
    how = How(scheme, names or names_of(params), **options)
    return quantize_blocks(config, params, Calibration(TOKENS, mesh), method=method, how=how)


def whole(params):
    """The parameters with float kernels."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({n: x.whole() if isinstance(x, Quantized) else x for n, x in flat.items()}, sep="/")


def inputs_of(config, params, layer):
    """What each matrix of a layer is given, and its outputs."""
    hidden = embed(config, params, ALL)
    for i in range(layer):
        hidden = run_block(config, one_layer(params["layers"], i), layer_of(config, i), hidden).hidden
    return run_block(config, one_layer(params["layers"], layer), layer_of(config, layer), hidden).inputs


def hidden_error(config, params, changed):
    before, after = (np.asarray(run_decoder(config, p, ALL).hidden) for p in (params, changed))
    return np.linalg.norm(after - before) / np.linalg.norm(before)


@pytest.mark.parametrize(("method", "kind"), [("gptq", "gpt2"), ("awq", "llama"), ("awq", "opt-350m")])
def test_outputs_change_less_than_rounded_to_the_nearest(model, method, kind):
    config, params = model(kind)
    made, figures = run(config, params, method)
    flat, changed = (flatten_dict(p["layers"], sep="/") for p in (params, whole(made)))
    assert all(
        isinstance(flatten_dict(made["layers"], sep="/")[name], Quantized) for name in names_of(params)
    )
    x, divided = (inputs_of(config, p, 0)["attention/query/kernel"] for p in (params, whole(made)))
    lost = nearest = 0
    for name in ("attention/query/kernel", "attention/key/kernel"):
        before, after, plain = (
            np.asarray(given, np.float64).reshape(-1, 16) @ np.asarray(kernel, np.float64)
            for given, kernel in (
                (x, flat[name][0]), (divided, changed[name][0]), (x, rounded(flat[name][0], INT4))
            )
        )  # fmt: skip
        told = figures[0].matrices[f"layers/{name}"].error
        assert told == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-3)
        lost, nearest = (s + np.square(y - before).sum() for s, y in ((lost, after), (nearest, plain)))
    assert lost < 0.9 * nearest
    assert [each.layer for each in figures] == [0, 1]
    for layer in figures:
        assert 0 < layer.error < 1
        assert set(layer.matrices) == {f"layers/{name}" for name in names_of(params)}
        assert all(0 < each.error < 0.5 for each in layer.matrices.values())


def test_each_block_is_given_what_the_quantized_ones_before_it_hand_on(model):
    config, params = model("gpt2")
    made, _ = run(config, params, "gptq", names=FEW)
    changed, layer = whole(made), 1
    mixed = jax.tree.map(lambda new, old: np.stack([new[0], old[1]]), changed["layers"], params["layers"])
    given = inputs_of(config, {**params, "layers": mixed}, layer)
    astray = inputs_of(config, params, layer)
    for name in FEW:
        kernel = flatten_dict(params["layers"], sep="/")[name][layer]
        found = flatten_dict(changed["layers"], sep="/")[name][layer]

        def solved(inputs, name=name, kernel=kernel):
            x = np.asarray(inputs[name]).reshape(-1, len(kernel))
            return np.asarray(sweep(kernel, x.T @ x, INT4).kernel)

        assert np.mean(np.abs(solved(given) - found) > 1e-4) < 0.05
        assert np.mean(np.abs(solved(astray) - found) > 1e-4) > 0.05


@pytest.mark.parametrize(("method", "kind"), [("gptq", "gpt2"), ("awq", "llama"), ("smoothquant", "llama")])
def test_a_mesh_gives_the_same_model(model, method, kind):
    config, params = model(kind)
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    alone, one = run(config, params, method, names=FEW)
    together, many = run(config, place(params, mesh), method, mesh=mesh, names=FEW)
    np.testing.assert_allclose([f.error for f in many], [f.error for f in one], rtol=0.02)
    for name in FEW:
        a, b = (flatten_dict(p["layers"], sep="/")[name].whole() for p in (alone, together))
        assert np.mean(np.abs(np.asarray(a) - np.asarray(b)) > 1e-4) < 0.02, name


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_sparse_model_stays_sparse(model, method):
    config, params = model("llama")
    rng = np.random.default_rng(2)
    flat = flatten_dict(params, sep="/")
    for name in names_of(params):
        flat[f"layers/{name}"] = flat[f"layers/{name}"] * (rng.random(flat[f"layers/{name}"].shape) < 0.5)
    params = unflatten_dict(flat, sep="/")
    made, _ = run(config, params, method, names=FEW)
    for name in FEW:
        dense, new = (flatten_dict(p["layers"], sep="/")[name] for p in (params, whole(made)))
        assert not np.asarray(new)[dense == 0].any()


@pytest.mark.parametrize(("method", "kind"), [("awq", "gpt2"), ("smoothquant", "llama"), ("awq", "opt-350m")])
def test_what_divides_is_only_there_where_nothing_else_can(model, method, kind):
    """And with many bits the model computes what it did."""
    config, params = model(kind)
    made, _ = run(config, params, method, scheme=Scheme(bits=8, group=8))
    divided = {
        name for name in names_of(params)
        if flatten_dict(made["layers"], sep="/")[name].input_scale is not None
    }  # fmt: skip
    assert (
        divided
        == {
            "gpt2": {"mlp/down/kernel"},
            "llama": set(),
            "opt-350m": set(names_of(params)) - {"attention/out/kernel", "mlp/down/kernel"},
        }[kind]
    )
    assert hidden_error(config, params, whole(made)) < 0.05
    before, after = (flatten_dict(p["layers"], sep="/") for p in (params, made))
    norms = [name for name in before if "norm" in name]
    moved = [name for name in norms if np.abs(after[name] - before[name]).max() > 1e-3]
    assert moved == ([] if kind == "opt-350m" else norms)


def test_matrices_that_are_not_named_stay_and_fit_what_was_folded(model):
    config, params = model("llama")
    made, figures = run(config, params, "smoothquant", names=("attention/query/kernel",))
    flat = flatten_dict(made["layers"], sep="/")
    assert [n for n in names_of(params) if isinstance(flat[n], Quantized)] == ["attention/query/kernel"]
    assert set(figures[0].matrices) == {"layers/attention/query/kernel"}
    assert np.abs(flat["attention/key/kernel"] - params["layers"]["attention"]["key"]["kernel"]).max() > 1e-3
    assert hidden_error(config, params, whole(made)) < 0.2
