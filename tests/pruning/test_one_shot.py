"""One-shot pruning in memory: what a config means for a model, and what comes of it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ragjax.config import Mesh, OneShot
from ragjax.errors import InputError
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.pruning.one_shot import plan, prune
from ragjax.sparsity.calibrated.methods import METHODS


@pytest.fixture
def text(tmp_path):
    """A source of 20 documents, and a cache of its own."""
    rng = np.random.default_rng(0)
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(" ".join(map(str, rng.integers(0, 500, 80))))
    return f"text:{tmp_path}/*.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))


def config(text, **fields):
    return OneShot(**{"calibration": text, "samples": 4, "batch_size": 2, "sequence_length": 32, **fields})


def zeros(model):
    kernels = {
        n: np.asarray(x) for n, x in flatten_dict(model.params, sep="/").items() if n.endswith("kernel")
    }
    return {name: kernel == 0 for name, kernel in kernels.items()}


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.needs_gram])
def test_each_method_removes_exactly_what_is_asked_for(tiny_byte_model, text, method):
    pruned, report = prune(tiny_byte_model, config(text, method=method, sparsity=0.25))
    for name, gone in zeros(pruned).items():
        axis = 1 if METHODS[method].pattern == "row" else (1, 2)
        assert (gone.mean(axis) == 0.25).all()
        assert (report.asked[name] == 0.25).all()
    assert report.sparsity.sparsity_prunable == 0.25
    assert report.sparsity.sparsity_total < 0.25
    assert report.tokens == 4 * 32
    assert [layer.layer for layer in report.layers] == [0, 1]
    assert pruned.tokenizer is tiny_byte_model.tokenizer


@pytest.mark.parametrize(
    ("fields", "grouped"),
    [
        (
            {"pattern": "n_of_m", "n": 1, "m": 4},
            lambda gone: gone.reshape(2, -1, 4, gone.shape[-1]).sum(2) == 3,
        ),
        ({"pattern": "row", "method": "magnitude"}, lambda gone: gone.mean(1) == 0.5),
        ({"pattern": "tensor"}, lambda gone: gone.mean((1, 2)) == 0.5),
        (
            {"pattern": "block", "block": (8, 16)},
            lambda gone: np.isin(gone.reshape(2, -1, 8, gone.shape[-1] // 16, 16).sum((2, 4)), (0, 128)),
        ),
    ],
    ids=["n_of_m", "row", "tensor", "block"],
)
def test_each_pattern_is_kept(tiny_byte_model, text, fields, grouped):
    pruned, report = prune(tiny_byte_model, config(text, **fields))
    for gone in zeros(pruned).values():
        assert grouped(gone).all()
    assert report.sparsity.sparsity_prunable == (0.75 if fields["pattern"] == "n_of_m" else 0.5)


def test_global_is_the_ranking_of_all_weights_together(tiny_byte_model, text):
    by_pattern, _ = prune(tiny_byte_model, config(text, method="magnitude", pattern="global"))
    by_budget, _ = prune(tiny_byte_model, config(text, method="magnitude", budget="global"))
    dense = {name: np.abs(tiny_byte_model.params["layers"][name.split("/")[1]][name.split("/")[2]]["kernel"])
             for name in zeros(by_pattern)}  # fmt: skip
    every = np.concatenate([weights.ravel() for weights in dense.values()])
    bar = np.sort(every)[every.size // 2 - 1]
    for name, gone in zeros(by_pattern).items():
        np.testing.assert_array_equal(gone, dense[name] <= bar)
        np.testing.assert_array_equal(gone, zeros(by_budget)[name])


@pytest.mark.parametrize("budget", ["erk", "owl", "global"])
def test_budgets_share_out_the_whole(tiny_byte_model, text, budget):
    pruned, report = prune(tiny_byte_model, config(text, budget=budget, pattern="tensor", sparsity=0.6))
    assert report.sparsity.sparsity_prunable == pytest.approx(0.6, abs=2e-4)
    shares = {name: gone.mean((1, 2)) for name, gone in zeros(pruned).items()}
    for name, share in shares.items():
        np.testing.assert_allclose(share, report.asked[name], atol=5e-4)
    assert len(set(np.concatenate(list(shares.values())).round(3))) > 1


def test_a_table_in_a_file_is_a_budget(tiny_byte_model, text, tmp_path):
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"layers/attention/*": 0, "layers/mlp/up/kernel": [0.25, 0.75]}))
    pruned, _ = prune(
        tiny_byte_model, config(text, method="magnitude", budget="table", table=str(file), sparsity=0.25)
    )
    gone = zeros(pruned)
    assert not gone["layers/attention/out/kernel"].any()
    np.testing.assert_array_equal(gone["layers/mlp/up/kernel"].mean((1, 2)), [0.25, 0.75])
    np.testing.assert_array_equal(gone["layers/mlp/down/kernel"].mean((1, 2)), [0.5, 0.5])


def test_the_history_says_what_was_done(tiny_byte_model, text):
    before = dataclasses.replace(tiny_byte_model, history=({"did": "import", "source": "x"},))
    pruned, _ = prune(before, config(text, method="ria", budget="erk", seed=3))
    assert pruned.history[0] == before.history[0]
    told = pruned.history[1]
    assert (told["did"], told["method"], told["pattern"], told["budget"]) == ("prune", "ria", "row", "erk")
    assert (told["sparsity"], told["calibration"], told["samples"], told["seed"]) == (0.5, text, 4, 3)
    assert told["sequence_length"] == 32
    json.dumps(told)


def test_the_same_seed_gives_the_same_model_and_another_another_text(tiny_byte_model, text):
    plans = [plan(tiny_byte_model, config(text, seed=seed)).calibration.tokens for seed in (1, 1, 2)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert (plans[0] != plans[2]).any()
    assert plans[0].shape == (2, 2, 32)


def test_microbatches_are_as_large_as_divides_the_samples(tiny_byte_model, text):
    wanted = config(text, samples=6, batch_size=4)
    assert plan(tiny_byte_model, wanted).calibration.tokens.shape == (2, 3, 32)
    mesh = make_mesh(Mesh(data=2, fsdp=1, tensor=4))
    assert plan(tiny_byte_model, wanted, mesh=mesh).calibration.tokens.shape == (3, 2, 32)


def test_sequences_are_as_long_as_the_model_reads_but_1024_at_most(tiny_byte_model, random_model, text):
    short = config(text, sequence_length=None, samples=2)
    assert plan(tiny_byte_model, short).calibration.tokens.shape[-1] == 64
    shape = dataclasses.replace(tiny_byte_model.config, positions=2048)
    long = random_model(shape, tokenizer=tiny_byte_model.tokenizer)
    assert plan(long, short).calibration.tokens.shape[-1] == 1024


def test_a_mesh_gives_the_same_model(tiny_byte_model, text):
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    alone, _ = prune(tiny_byte_model, config(text))
    together, _ = prune(tiny_byte_model, config(text), mesh=mesh)
    for name, gone in zeros(together).items():
        np.testing.assert_array_equal(gone, zeros(alone)[name])


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("axes", [None, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_donated_model_is_overwritten_and_comes_out_the_same(tiny_byte_model, text, method, axes):
    mesh = None if axes is None else make_mesh(Mesh(**axes))
    own = jax.tree.map(jnp.copy, tiny_byte_model.params)
    if mesh is not None:
        own = place(own, mesh)
    kept, _ = prune(dataclasses.replace(tiny_byte_model, params=own), config(text, method=method), mesh=mesh)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(own))

    def where(params):
        kernels = flatten_dict(params["layers"], sep="/")
        return {
            name: [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]
            for name, leaf in kernels.items()
            if name.endswith("kernel")
        }

    before = where(own)
    donated = dataclasses.replace(tiny_byte_model, params=own)
    pruned, _ = prune(donated, config(text, method=method), mesh=mesh, donate=True)
    assert where(pruned.params) == before
    jax.tree.map(np.testing.assert_array_equal, pruned.params, kept.params)
    assert own["layers"]["mlp"]["up"]["kernel"].is_deleted()


def test_all_that_does_not_fit_the_model_is_said_at_once(tiny_byte_model, text, tmp_path):
    (tmp_path / "t.json").write_text('{"layers/mlp/*": 3}')
    wrong = config(
        text, samples=999, sequence_length=100, budget="table", table=str(tmp_path / "t.json"),
    )  # fmt: skip
    mesh = make_mesh(Mesh(data=2, fsdp=1, tensor=4))
    with pytest.raises(InputError) as error:
        prune(tiny_byte_model, wrong, mesh=mesh)
    for said in (
        "samples 999 must be divisible by mesh.data x mesh.fsdp = 2",
        "sequence_length 100 must not exceed the model's 64 positions",
        "999 sequences of 100 tokens need 99,901 tokens",
        "table: layers/mlp/*: a sparsity lies in [0, 1], found [3]",
    ):
        assert said in str(error.value)


def test_inputs_that_do_not_divide_are_all_named(tiny_byte_model, text):
    with pytest.raises(InputError) as error:
        prune(tiny_byte_model, config(text, pattern="n_of_m", n=2, m=5))
    assert "layers/mlp/down/kernel has 64 inputs, which do not divide into groups of m = 5" in str(
        error.value
    )
    assert "layers/attention/out/kernel has 32 inputs" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prunable": ("nothing",)}, "no parameter is named by 'nothing'"),
        ({"prunable": ("embedding/tokens",)}, "(?s)only the matrices of the blocks.*embedding/tokens"),
        ({"budget": "table", "table": "/no/such.json"}, "/no/such.json: cannot be read"),
        ({"calibration": "text:/no/such/*.txt"}, "/no/such"),
    ],
)
def test_what_is_not_there_is_named(tiny_byte_model, text, fields, said):
    with pytest.raises(InputError, match=said):
        prune(tiny_byte_model, config(text, **fields))


def test_a_model_without_a_tokenizer_reads_no_text(tiny_byte_model, text):
    with pytest.raises(InputError, match="no tokenizer"):
        prune(dataclasses.replace(tiny_byte_model, tokenizer=None), config(text))


def test_the_package_exports_the_function_however_often_it_is_asked():
    import ragjax.pruning.one_shot

    assert ragjax.prune is ragjax.pruning.one_shot.prune
    assert ragjax.prune is ragjax.pruning.one_shot.prune
