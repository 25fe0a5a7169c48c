"""Curves of sensitivity: each is the loss of the whole model with that matrix alone pruned."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import OneShot
from ragjax.data import Batches, open_corpora
from ragjax.errors import InputError
from ragjax.pruning.one_shot import plan
from ragjax.pruning.sensitivity import sensitivity
from ragjax.sparsity.patterns import per_tensor

TINY = {"samples": 4, "sequence_length": 32}


@pytest.fixture(scope="module")
def held_out(tiny_byte_model):
    _, corpus = open_corpora("builtin:python", None, tiny_byte_model.tokenizer)
    return Batches(corpus=corpus, batch_size=3, sequence_length=32, seed=0).batch(0)


def loss(model, params, batch):
    scores = type(model)(model.config, params)(batch.tokens)
    return -float(jnp.take_along_axis(jax.nn.log_softmax(scores), batch.targets[..., None], -1).mean())


def test_every_point_is_the_loss_with_that_matrix_pruned(tiny_byte_model, held_out):
    model = tiny_byte_model
    found = sensitivity(model, OneShot(method="magnitude", **TINY), sparsities=(0.5, 0.9), sequences=3)
    assert found.dense == pytest.approx(loss(model, model.params, held_out), rel=1e-5)
    for name in found.loss:
        assert found.loss[name].shape == (model.config.layers, 2)
        _, module, matrix, _ = name.split("/")
        for layer in range(model.config.layers):
            for level, sparsity in enumerate((0.5, 0.9)):
                params = copy.deepcopy(jax.tree.map(np.asarray, model.params))
                kernel = np.array(params["layers"][module][matrix]["kernel"])
                kernel[layer] *= np.asarray(per_tensor(np.abs(kernel[layer]), sparsity))
                params["layers"][module][matrix]["kernel"] = kernel
                expected = loss(model, params, held_out)
                assert found.loss[name][layer, level] == pytest.approx(expected, rel=1e-5)
    assert found.loss.keys() == plan(model, OneShot(**TINY)).shapes.keys()


def test_a_calibrated_method_sees_the_dense_model(tiny_byte_model):
    by_wanda, by_size = (
        sensitivity(tiny_byte_model, OneShot(method=m, **TINY), sparsities=(0.7,), sequences=3)
        for m in ("wanda", "magnitude")
    )
    assert by_wanda.dense == by_size.dense
    assert all((by_wanda.loss[name] != by_size.loss[name]).any() for name in by_wanda.loss)


@pytest.mark.parametrize("sparsities", [(), (0.5, 0.3), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)])
def test_sparsities_that_make_no_curve_are_refused(tiny_byte_model, sparsities):
    with pytest.raises(InputError, match="sparsities must rise between 0 and 1"):
        sensitivity(tiny_byte_model, OneShot(**TINY), sparsities=sparsities)


def test_of_n_of_m_only_whole_weights_go(tiny_byte_model):
    config = OneShot(pattern="n_of_m", **TINY)
    with pytest.raises(InputError, match=r"among 0\.25 0\.5 0\.75, found \(0\.5, 0\.9\)"):
        sensitivity(tiny_byte_model, config, sparsities=(0.5, 0.9))


@pytest.mark.parametrize("sequences", [0, 10**6])
def test_no_sequences_and_more_than_there_are_held_out_are_refused(tiny_byte_model, sequences):
    with pytest.raises(InputError, match=f"{sequences} of 32 need .* are held out"):
        sensitivity(tiny_byte_model, OneShot(**TINY), sequences=sequences)


def test_what_is_held_out_of_a_text_does_not_calibrate(tiny_byte_model, tmp_path, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"Document {number}: " + f"words about {number}. " * 30)
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))
    config = OneShot(method="magnitude", calibration=f"text:{tmp_path}/*.txt", **TINY)
    asked = []

    def watched(*args, **kwargs):
        asked.append(plan(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr("ragjax.pruning.sensitivity.plan", watched)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(tiny_byte_model, config)
    train, validation = open_corpora(config.calibration, None, tiny_byte_model.tokenizer)
    read = {tuple(row) for row in asked[0].calibration.tokens.reshape(-1, 32).tolist()}

    def windows(corpus):
        ring = np.concatenate([corpus.tokens, corpus.tokens[:32]]).tolist()
        return {tuple(ring[start : start + 32]) for start in range(len(corpus.tokens))}

    assert read <= windows(train)
    assert not read & windows(validation)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_stopped_it_goes_on_and_ends_as_if_it_had_not_been(tiny_byte_model, tmp_path, method):
    class Stop(Exception):
        pass

    def stop(layer):
        raise Stop

    def measured(**more):
        return sensitivity(tiny_byte_model, asked, sparsities=(0.5, 0.9), sequences=3, **more)

    asked = OneShot(method=method, **TINY)
    expected = measured()
    with pytest.raises(Stop):
        measured(unfinished=tmp_path / "kept", progress=stop)
    told = []
    found = measured(unfinished=tmp_path / "kept", progress=told.append)
    assert told == [1]
    assert found.dense == expected.dense
    assert all((found.loss[name] == values).all() for name, values in expected.loss.items())
    # What the curves do not depend on may be another.
    asked = OneShot(method=method, sparsity=0.3, **TINY)
    assert measured(unfinished=tmp_path / "kept").dense == expected.dense
    with pytest.raises(InputError, match=r"sparsities was \[0.5, 0.9\], is \[0.3, 0.5, 0.7, 0.9\]"):
        sensitivity(tiny_byte_model, asked, sequences=3, unfinished=tmp_path / "kept")
