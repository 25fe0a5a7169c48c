"""Methods that read a text: what a config means for them, and what comes of it."""

import dataclasses
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ragjax.config import Mesh, Quantize
from ragjax.errors import InputError
from ragjax.interchange.tensors import open_weight_file, write_weight_file
from ragjax.models.stand_ins import made_whole
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.quantization import Quantized
from ragjax.quantization.block import CALIBRATED, QuantizedFigures
from ragjax.quantization.stream import LayerFigures
from ragjax.quantizing.by_text import remarks
from ragjax.quantizing.methods import METHODS
from ragjax.quantizing.quantize import quantize


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(20):
        (folder / f"{number}.txt").write_text(" ".join(map(str, rng.integers(0, 500, 80))))
    return f"text:{folder}/*.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))


def config(text, **fields):
    shape = {"scheme": "int4", "calibration": text, "samples": 4, "batch_size": 2, "sequence_length": 32}
    return Quantize(**{**shape, **fields})


def test_every_method_in_the_schema_is_there():
    assert set(typing.get_args(typing.get_type_hints(Quantize)["method"])) == set(METHODS)
    assert set(CALIBRATED) == set(METHODS) - {"rtn"}


@pytest.mark.parametrize(
    ("method", "fields"),
    [("gptq", {"order": True}), ("awq", {"group": 16}), ("smoothquant", {"scheme": "int8_activations"})],
)
def test_the_model_runs_on_its_integers_and_says_how_it_came_about(tiny_byte_model, text, method, fields):
    lines = []
    made = quantize(tiny_byte_model, config(text, method=method, **fields), progress=lines.append)
    assert [line.split()[:2] for line in lines] == [["layer", "1/2"], ["layer", "2/2"]]
    tokens = np.random.default_rng(1).integers(0, 257, (2, 20))
    kernels = {n: x for n, x in flatten_dict(made.model.params, sep="/").items() if isinstance(x, Quantized)}
    assert kernels.keys() == made.report.errors.keys()
    assert len(kernels) == 6
    assert made.report.error_of == "outputs"
    assert all(len(layers) == 2 and 0 < min(layers) < 0.3 for layers in made.report.errors.values())
    told = made.model.history[-1]
    assert (told["did"], told["method"], told["samples"]) == ("quantize", method, 4)
    json.dumps(told)
    floats = dataclasses.replace(made.model, params=made_whole(made.model.params))
    ours, theirs = np.asarray(made.model(tokens)), np.asarray(floats(tokens))
    # Where inputs are rounded too, the floats do not say all.
    bound = 0.05 if method == "smoothquant" else 1e-3
    assert np.abs(ours - theirs).max() < bound * np.abs(theirs).max()


def test_on_a_mesh_it_is_the_same_model(tiny_byte_model, text):
    wanted = config(text, method="awq")
    alone = quantize(tiny_byte_model, wanted)
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    spread = dataclasses.replace(tiny_byte_model, params=place(tiny_byte_model.params, mesh))
    together = quantize(spread, wanted, mesh=mesh)
    for name, errors in alone.report.errors.items():
        np.testing.assert_allclose(together.report.errors[name], errors, rtol=0.02)
    codes = [m.model.params["layers"]["mlp"]["up"]["kernel"].codes for m in (alone, together)]
    assert np.mean(np.asarray(codes[0]) != np.asarray(codes[1])) < 0.02
    assert len(codes[1].sharding.device_set) == 8
    assert jax.tree.structure(alone.model.params) == jax.tree.structure(together.model.params)


def test_all_that_is_wrong_with_the_text_is_said_at_once(tiny_byte_model, text):
    with pytest.raises(InputError) as error:
        quantize(tiny_byte_model, config(text, method="gptq", samples=999, sequence_length=100))
    for said in ("sequence_length 100 must not exceed the model's 64", "999 sequences of 100 tokens need"):
        assert said in str(error.value)


def test_what_is_amiss_with_the_inputs_of_a_matrix_is_told():
    found = {
        "fine": QuantizedFigures(0.1, 0.01, 0),
        "dead": QuantizedFigures(0.1, 0.01, 3),
        "singular": QuantizedFigures(0.1, 0.1, 0),
        "broken": QuantizedFigures(0.1, np.inf, 0),
    }
    assert remarks(LayerFigures(0, 0.1, found, 1.0), 0.01) == [
        "dead: 3 inputs were 0 at every token",
        "singular: its X'X was near-singular, dampened by 0.1",
        "broken: its X'X cannot be used, rounded to the nearest",
    ]


class Stop(Exception):
    pass


def stopped_after_a_block(model, asked, folder):
    def stop(done, of):
        raise Stop

    with pytest.raises(Stop):
        quantize(model, asked, unfinished=folder, after_block=stop)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("gptq", {"order": True}),
        ("gptq", {"scheme": "int8", "symmetric": False}),
        ("awq", {"group": 16}),
        ("smoothquant", {"scheme": "int8_activations"}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopped_it_goes_on_and_ends_as_if_it_had_not_been(
    tiny_byte_model, text, tmp_path, method, fields, dtype
):
    asked, folder = config(text, method=method, **fields), tmp_path / "kept"
    params = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), tiny_byte_model.params)
    model = dataclasses.replace(tiny_byte_model, params=params)
    expected = quantize(model, asked)
    stopped_after_a_block(model, asked, folder)
    told, lines = [], []
    found = quantize(
        model, asked, unfinished=folder,
        progress=lines.append, after_block=lambda *counts: told.append(counts),
    )  # fmt: skip
    assert told == [(2, 2)]
    assert [line.split()[:2] for line in lines] == [["layer", "2/2"]]
    here, there = found.model.params, expected.model.params
    assert jax.tree.structure(here) == jax.tree.structure(there)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), here, there)))
    assert found.report.errors == expected.report.errors
    assert found.report.bits == expected.report.bits


def test_the_time_of_an_earlier_call_counts(tiny_byte_model, text, tmp_path):
    asked = config(text, method="gptq")
    stopped_after_a_block(tiny_byte_model, asked, tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob("block_*")
    kept = open_weight_file(file)
    arrays = {name: np.array(kept.read(name)) for name in kept.header}
    write_weight_file({**arrays, "seconds": np.asarray(1000.0)}, file, {})
    made = quantize(tiny_byte_model, asked, unfinished=tmp_path / "kept")
    assert 1000 < made.report.seconds < 2000


def test_nothing_else_goes_on_from_what_was_kept(tiny_byte_model, text, tmp_path):
    stopped_after_a_block(tiny_byte_model, config(text, method="gptq"), tmp_path / "kept")
    with pytest.raises(InputError, match=r"(?s)begun otherwise.*bits was 4, is 8"):
        quantize(tiny_byte_model, config(text, method="gptq", scheme="int8"), unfinished=tmp_path / "kept")
