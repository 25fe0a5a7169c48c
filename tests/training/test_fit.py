"""A training from model to model: resumed is uninterrupted, pruned stays pruned, bad input is refused."""

import dataclasses
import io
import json
import math
from functools import partial

import jax
import numpy as np
import pytest
from rich.console import Console

from ragjax.config import Distill, Mesh, Sparsity, Train
from ragjax.data.corpus import Corpus
from ragjax.errors import InputError
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import make_mesh
from ragjax.training.fit import Place, Texts, fit
from ragjax.training.loop import Diverged, Interrupted

TRAIN = Train(
    steps=12,
    batch_size=4,
    warmup=2,
    learning_rate=1e-2,
    log_every=2,
    checkpoint_every=4,
    evaluate_every=6,
)
SPARSITY = Sparsity(target=0.5, stop=8, every=2)
MIXED = Distill(forward_kl=0.5, cross_entropy=0.5, hidden_mse=0.1)


class StopAfter:
    """Asks to stop once it has been asked so many times."""

    def __init__(self, steps=math.inf):
        self.left = steps

    def requested(self):
        self.left -= 1
        return self.left <= 0


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)

    def corpus(size):
        tokens = rng.integers(0, 60, size).astype(np.uint16)
        return Corpus(tokens, np.arange(0, size, 50), utf8_bytes=size, words=size // 4)

    return Texts(corpus(2000), corpus(400), sequence_length=16)


@pytest.fixture(scope="module")
def dropping(tiny_model):
    """With dropout, so that the random keys must come back too."""
    return dataclasses.replace(
        tiny_model, config=dataclasses.replace(tiny_model.config, residual_dropout=0.1)
    )


@pytest.fixture
def teacher(tiny_config):
    return Model(tiny_config, init_params(tiny_config, seed=5))


def place_in(folder, *, stop=math.inf, devices=1):
    mesh = make_mesh(Mesh(), jax.devices()[:devices])
    return Place(mesh, folder, Console(file=io.StringIO()), StopAfter(stop))


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "tokens_per_second")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(dropping, texts, tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    taught = Model(tiny_config, init_params(tiny_config, seed=5))
    run = partial(
        fit, dropping, stage="s", train=TRAIN, texts=texts, seed=3, sparsity=SPARSITY,
        distill=MIXED, teacher=taught,
    )  # fmt: skip
    return run, run(place_=place_in(folder)), folder


@pytest.mark.parametrize("stop", [3, 4, 9])
def test_a_resumed_run_is_the_run_uninterrupted_to_the_last_bit(uninterrupted, tmp_path, stop):
    run, whole, whole_folder = uninterrupted
    with pytest.raises(Interrupted, match=f"stopped at step {stop} of 12"):
        run(place_=place_in(tmp_path, stop=stop))
    resumed = run(place_=place_in(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert metrics(tmp_path) == metrics(whole_folder)


def test_a_crash_goes_back_to_the_last_checkpoint_and_repeats_what_came_after(uninterrupted, tmp_path):
    run, whole, whole_folder = uninterrupted

    class Crash(StopAfter):
        def requested(self):
            if super().requested():
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(place_=dataclasses.replace(place_in(tmp_path), interrupts=Crash(7)))
    resumed = run(place_=place_in(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert metrics(tmp_path) == metrics(whole_folder)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path):
    run, whole, _ = uninterrupted
    with pytest.raises(Interrupted):
        run(place_=place_in(tmp_path, stop=9))
    latest = tmp_path / "checkpoints" / "s" / "9"
    largest = max((f for f in latest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    place = place_in(tmp_path)
    resumed = run(place_=place)
    assert "warning" in place.console.file.getvalue()
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_a_checkpoint_of_another_training_is_refused(uninterrupted, dropping, texts, teacher, tmp_path):
    run, _, _ = uninterrupted
    with pytest.raises(Interrupted):
        run(place_=place_in(tmp_path, stop=5))
    with pytest.raises(InputError, match="learning_rate"):
        fit(
            dropping, stage="s", train=dataclasses.replace(TRAIN, learning_rate=5e-3), texts=texts, seed=3,
            sparsity=SPARSITY, distill=MIXED, teacher=teacher, place_=place_in(tmp_path),
        )  # fmt: skip


def test_the_run_goes_on_from_one_device_to_four(uninterrupted, tmp_path):
    run, whole, _ = uninterrupted
    with pytest.raises(Interrupted):
        run(place_=place_in(tmp_path, stop=6))
    moved = run(place_=place_in(tmp_path, devices=4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), moved.params, whole.params)


def test_pruned_weights_are_exact_zeros_at_the_end(uninterrupted):
    _, whole, _ = uninterrupted
    for name in ("query", "key", "value", "out"):
        for layer in np.asarray(whole.params["layers"]["attention"][name]["kernel"]):
            assert np.count_nonzero(layer) == layer.size // 2


def test_training_learns_and_tells(uninterrupted, tmp_path):
    _, _, folder = uninterrupted
    told = metrics(folder)
    assert [line["step"] for line in told if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in told if "validation_loss" in line] == [6, 12]
    last = [line for line in told if "loss" in line]
    assert last[-1]["loss"] < last[0]["loss"]
    assert last[-1]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert {"cross_entropy", "forward_kl", "hidden_mse", "learning_rate", "gradient_norm"} <= last[0].keys()


def test_steps_that_stay_not_finite_end_the_run_with_finite_parameters_saved(tiny_model, texts, tmp_path):
    broken = jax.tree.map(np.array, tiny_model.params)
    # Finite weights whose logits overflow.
    broken["final_norm"]["scale"][:] = 3e38
    start = dataclasses.replace(tiny_model, params=broken)
    train = dataclasses.replace(TRAIN, max_bad_steps=3)
    with pytest.raises(Diverged, match="3 steps in a row"):
        fit(start, stage="s", train=train, texts=texts, seed=0, place_=place_in(tmp_path))
    assert list((tmp_path / "checkpoints" / "s").iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": {"sequence_length": 65}}, "exceeds the model's 64 positions"),
        ({"distill": MIXED}, "need a teacher"),
        ({"train": {"batch_size": 3, "accumulate": 1}, "devices": 2}, "3 sequences of a microbatch"),
        ({"sparsity": Sparsity(target=0.5, prunable=("nothing/*",))}, "no parameter is named by"),
        ({"sparsity": Sparsity(pattern="n_of_m", n=2, m=5, target=0.6)}, "query"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_any_step(tiny_model, texts, tmp_path, change, said):
    wanted = {"train": TRAIN, "texts": texts, "sparsity": None, "distill": None} | change
    for name, whole in (("train", TRAIN), ("texts", texts)):
        if isinstance(wanted[name], dict):
            wanted[name] = dataclasses.replace(whole, **wanted[name])
    given = {k: v for k, v in wanted.items() if v is not None and k != "devices"}
    place = place_in(tmp_path, devices=change.get("devices", 1))
    with pytest.raises(InputError, match=said):
        fit(tiny_model, stage="s", seed=0, place_=place, **given)


def test_a_teacher_of_another_vocabulary_is_refused(tiny_model, texts, tmp_path):
    other = dataclasses.replace(tiny_model.config, vocab_size=200)
    with pytest.raises(InputError, match="200 and 300"):
        fit(
            tiny_model, stage="s", train=TRAIN, texts=texts, seed=0, distill=MIXED,
            teacher=Model(other, init_params(other, 0)), place_=place_in(tmp_path),
        )  # fmt: skip


def test_a_model_that_was_pruned_stays_pruned_whatever_follows(uninterrupted, texts, tmp_path):
    _, pruned, _ = uninterrupted
    further = fit(pruned, stage="s", train=TRAIN, texts=texts, seed=0, place_=place_in(tmp_path))
    for old, new in zip(
        jax.tree.leaves(pruned.params["layers"]["mlp"]),
        jax.tree.leaves(further.params["layers"]["mlp"]),
        strict=True,
    ):
        if old.ndim == 3:
            np.testing.assert_array_equal(np.asarray(old) == 0, np.asarray(new) == 0)
            assert not np.array_equal(old, new)
