"""A training from model to model: resumed is uninterrupted, pruned stays pruned, bad input is refused."""

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from ragjax.config import Distill, FakeQuantize, Sparsity, Train
from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.errors import InputError
from ragjax.model import Model
from ragjax.models.decoder import init_params, logits
from ragjax.models.run import run_decoder
from ragjax.quantization.grid import rounded
from ragjax.quantization.scheme import SCHEMES
from ragjax.sparsity import sparsify
from ragjax.training.feed import batch_on_mesh
from ragjax.training.fit import Texts, fit
from ragjax.training.loop import Diverged, Interrupted
from ragjax.training.optimizer import OPTIMIZERS, learning_rate, make_optimizer

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


def told(place):
    """What was shown on the terminal of `place`."""
    return place.console.file.getvalue()


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "tokens_per_second")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(dropping, texts, tiny_config, tmp_path_factory, place_in):
    folder = tmp_path_factory.mktemp("whole")
    taught = Model(tiny_config, init_params(tiny_config, seed=5))
    run = partial(
        fit, dropping, stage="s", train=TRAIN, texts=texts, seed=3, sparsity=SPARSITY,
        distill=MIXED, teachers=[taught],
    )  # fmt: skip
    return run, run(place_=place_in(folder)), folder


@pytest.mark.parametrize("stop", [3, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (4, 9))])
def test_a_resumed_run_is_the_run_uninterrupted_to_the_last_bit(uninterrupted, tmp_path, stop, place_in):
    run, whole, whole_folder = uninterrupted
    with pytest.raises(Interrupted, match=f"stopped at step {stop} of 12"):
        run(place_=place_in(tmp_path, stop=stop))
    place = place_in(tmp_path)
    resumed = run(place_=place)
    assert f"resumed at step {stop}\n" in told(place)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert metrics(tmp_path) == metrics(whole_folder)


def test_a_crash_goes_back_to_the_last_checkpoint_and_repeats_what_came_after(
    uninterrupted, tmp_path, place_in, stop_after
):
    run, whole, whole_folder = uninterrupted

    class Crash(stop_after):
        def requested(self):
            if super().requested():
                raise RuntimeError("power cut")

    other = {"stage": "other", "step": 11}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(RuntimeError, match="power cut"):
        run(place_=dataclasses.replace(place_in(tmp_path), interrupts=Crash(7)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "s", "st')
    place = place_in(tmp_path)
    resumed = run(place_=place)
    assert "resumed at step 4\n" in told(place)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert metrics(tmp_path) == [other, *metrics(whole_folder)]


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path, place_in):
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
    assert "warning The checkpoint of step 9 cannot be used" in told(place)
    assert "resumed at step 8\n" in told(place)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_a_checkpoint_of_another_training_is_refused(uninterrupted, texts, tiny_config, tmp_path, place_in):
    run, _, _ = uninterrupted
    with pytest.raises(Interrupted):
        run(place_=place_in(tmp_path, stop=1))
    shorter = dataclasses.replace(texts.train, tokens=texts.train.tokens[:1900])
    for change, said in (
        ({"train": dataclasses.replace(TRAIN, learning_rate=5e-3)}, "train.learning_rate: 0.01 there"),
        ({"seed": 4}, "seed: 3 there, 4 now"),
        ({"sparsity": dataclasses.replace(SPARSITY, target=0.6)}, "sparsity.target: 0.5 there, 0.6 now"),
        ({"distill": dataclasses.replace(MIXED, temperature=2.0)}, "distill.temperature: 1.0 there"),
        ({"texts": dataclasses.replace(texts, train=shorter)}, "tokens: 2000 there, 1900 now"),
        ({"texts": dataclasses.replace(texts, isolate_documents=True)}, "isolate_documents: None there"),
        ({"teachers": [Model(tiny_config, init_params(tiny_config, seed=6))]}, "checksums of the teachers: "),
    ):
        with pytest.raises(InputError, match=said):
            run(place_=place_in(tmp_path), **change)


def test_the_run_goes_on_from_one_device_to_four_with_other_habits(uninterrupted, tmp_path, place_in):
    run, whole, _ = uninterrupted
    with pytest.raises(Interrupted):
        run(place_=place_in(tmp_path, stop=6))
    habits = dataclasses.replace(TRAIN, log_every=5, checkpoint_every=50, evaluate_every=0, keep=3)
    place = place_in(tmp_path, devices=4)
    moved = run(place_=place, train=habits)
    assert "resumed at step 6\n" in told(place)
    # A twentieth of a step: where a gradient is next to nothing, Adam makes as much of its rounding.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=5e-4), moved.params, whole.params)
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [2, 4, 6, 10, 12]
    assert [line["step"] for line in metrics(tmp_path) if "validation_loss" in line] == [6, 12]


def test_a_wish_to_stop_at_the_last_step_ends_the_training(tiny_model, texts, tmp_path, place_in):
    run = partial(fit, tiny_model, stage="s", train=dataclasses.replace(TRAIN, steps=3), texts=texts, seed=0)
    done = run(place_=place_in(tmp_path, stop=3))
    before = metrics(tmp_path)
    # As after a crash between the last step and the saving of the model.
    again = run(place_=place_in(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, again.params, done.params)
    assert metrics(tmp_path) == before


def test_pruned_weights_are_exact_zeros_at_the_end(uninterrupted):
    _, whole, _ = uninterrupted
    for name in ("query", "key", "value", "out"):
        for layer in np.asarray(whole.params["layers"]["attention"][name]["kernel"]):
            assert np.count_nonzero(layer) == layer.size // 2


def test_training_learns_and_tells(uninterrupted):
    _, _, folder = uninterrupted
    lines = metrics(folder)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "validation_loss" in line] == [6, 12]
    lines = [line for line in lines if "loss" in line]
    first, last = lines[0], lines[-1]
    assert last["loss"] < first["loss"]
    assert last["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert {"cross_entropy", "forward_kl", "hidden_mse", "gradient_norm"} <= first.keys()
    assert [line["tokens"] for line in lines] == [step * 4 * 16 for step in (2, 4, 6, 8, 10, 12)]
    # Two thirds of the peak at the second step of two of warm-up, and the cosine's half way at the eighth.
    assert first["learning_rate"] == pytest.approx(2 / 3 * 1e-2)
    assert lines[3]["learning_rate"] == pytest.approx(1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))


def test_training_is_gradient_descent_on_the_batches_of_its_seed(
    tiny_model, texts, tmp_path, monkeypatch, place_in
):
    """Microbatches, clipping, momentum, decay and schedule, against the textbook."""
    train = Train(
        steps=4, batch_size=4, accumulate=2, optimizer="sgd", learning_rate=0.1, warmup=1, schedule="linear",
        final_rate=0.5, weight_decay=0.3, b1=0.8, clip=0.3,
    )  # fmt: skip
    texts = dataclasses.replace(texts, isolate_documents=True)
    batches = Batches(corpus=texts.train, batch_size=4, sequence_length=16, seed=3, isolate_documents=True)

    @jax.jit
    def loss(params, batch):
        hidden = run_decoder(
            tiny_model.config, params, batch.tokens, positions=batch.positions, segments=batch.segments
        ).hidden
        scores = logits(params, hidden, tiny_model.config)
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, batch.targets)
        return jnp.sum(nats * batch.weights) / jnp.sum(batch.weights)

    def is_matrix(path):
        return path[-1].key not in ("bias", "scale")

    params = tiny_model.params
    momentum = jax.tree.map(jnp.zeros_like, params)
    for step, rate in enumerate((0.05, 0.1, 0.1 * (1 - 0.5 / 3), 0.1 * (1 - 0.5 * 2 / 3))):
        gradient = jax.grad(loss)(params, batches.batch(step))
        norm = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
        assert norm > train.clip
        momentum = jax.tree.map(lambda m, g, by=train.clip / norm: 0.8 * m + by * g, momentum, gradient)
        params = jax.tree_util.tree_map_with_path(
            lambda path, p, m, rate=rate: p - rate * (m + 0.3 * p * is_matrix(path)), params, momentum
        )
    # The sum is the same however a batch is cut, so that the cuts must be looked at.
    shapes = []

    def recorded(*given, **options):
        batch = batch_on_mesh(*given, **options)
        shapes.append(batch.tokens.shape)
        return batch

    monkeypatch.setattr("ragjax.training.loop.batch_on_mesh", recorded)
    found = fit(tiny_model, stage="s", train=train, texts=texts, seed=3, place_=place_in(tmp_path))
    assert shapes == [(2, 2, 16)] * 4
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found.params, params)

    held_out = Batches(
        corpus=texts.validation, batch_size=16_384 // 16, sequence_length=16, isolate_documents=True
    )
    (validation,) = [line["validation_loss"] for line in metrics(tmp_path) if "validation_loss" in line]
    assert validation == pytest.approx(float(loss(params, held_out.batch(0))), rel=1e-5)


def test_the_settings_of_a_training_reach_its_step(tiny_model, texts, tmp_path, monkeypatch, place_in):
    class Reached(Exception):
        pass

    def make_step(objective, _, **options):
        raise Reached(objective, options)

    def recorded(optimizer, sparsity, **options):
        pruned.append((sparsity, options))
        return sparsify(optimizer, sparsity, **options)

    pruned = []
    monkeypatch.setattr("ragjax.training.fit.make_step", make_step)
    monkeypatch.setattr("ragjax.training.fit.sparsify", recorded)
    train = dataclasses.replace(TRAIN, dtype="bfloat16", remat="dots", clip=0.25)
    with pytest.raises(Reached) as reached:
        fit(
            tiny_model, stage="s", train=train, texts=texts, seed=6, sparsity=SPARSITY, distill=MIXED,
            teachers=[tiny_model], place_=place_in(tmp_path, devices=4),
        )  # fmt: skip
    objective, options = reached.value.args
    assert options == {"clip": 0.25, "seed": 6}
    assert (objective.dtype, objective.remat, objective.weights) == (jnp.bfloat16, "dots", MIXED)
    assert objective.shards == 4
    assert pruned[-1] == (SPARSITY, {"total_steps": 12, "seed": 6, "masks": None})


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("constant", lambda _: 1.0),
        ("linear", lambda time: 1 - 0.8 * time),
        ("cosine", lambda time: 0.2 + 0.8 * (1 + math.cos(math.pi * time)) / 2),
    ],
)
def test_the_learning_rate_warms_up_and_then_takes_its_shape(schedule, share):
    rate = learning_rate(Train(steps=24, warmup=4, learning_rate=0.5, schedule=schedule, final_rate=0.2))
    expected = [0.1, 0.2, 0.3, 0.4] + [0.5 * share((step - 4) / 20) for step in range(4, 25)]
    np.testing.assert_allclose([rate(step) for step in range(25)], expected, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_decay_and_vectors_do_not(name):
    train = Train(steps=2, warmup=1, learning_rate=0.2, optimizer=name, weight_decay=0.5)
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0), "norm": {"scale": jnp.full(3, 2.0)}}
    optimizer = make_optimizer(train)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    assert not updates["bias"].any()
    assert not updates["norm"]["scale"].any()


@pytest.mark.parametrize(
    ("name", "second"),
    [
        # After gradients 1 and -1.5, from the papers' formulas with b1 0.9 and b2 0.8.
        ("adamw", (0.09 - 0.15) / (1 - 0.9**2) / math.sqrt((0.8 * 0.2 + 0.2 * 2.25) / (1 - 0.8**2))),
        ("lion", np.sign(0.9 * 0.2 - 0.1 * 1.5)),
        ("sgd", 0.9 - 1.5),
    ],
)
def test_an_update_rule_has_the_decays_of_its_config(name, second):
    train = Train(
        steps=2, warmup=0, schedule="constant", learning_rate=0.1, optimizer=name, weight_decay=0.0, b2=0.8
    )
    optimizer, params = make_optimizer(train), {"bias": jnp.ones(1)}
    state = optimizer.init(params)
    for gradient in (1.0, -1.5):
        updates, state = optimizer.update({"bias": jnp.full(1, gradient)}, state, params)
    np.testing.assert_allclose(updates["bias"], -0.1 * second, rtol=1e-4)


def test_a_wider_teacher_is_followed_inside_while_pruning_and_its_projections_are_gone_at_the_end(
    tiny_model, tiny_config, texts, tmp_path, place_in, random_model
):
    teacher = random_model(dataclasses.replace(tiny_config, width=48, heads=6, layers=4))
    distill = Distill(
        forward_kl=0.0, cross_entropy=0.0, hidden_mse=1.0, hidden_cosine=1.0, relations=1.0, relation_heads=2
    )
    run = partial(
        fit, tiny_model, stage="s", train=TRAIN, texts=texts, seed=3, sparsity=SPARSITY, distill=distill,
        teachers=[teacher],
    )  # fmt: skip
    with pytest.raises(Interrupted):
        run(place_=place_in(tmp_path, stop=5))
    trained = run(place_=place_in(tmp_path))
    assert jax.tree.structure(trained.params) == jax.tree.structure(tiny_model.params)
    kernel = np.asarray(trained.params["layers"]["attention"]["query"]["kernel"][0])
    assert np.count_nonzero(kernel) == kernel.size // 2
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    for name in ("hidden_mse", "hidden_cosine", "relations"):
        assert lines[-1][name] < 0.95 * lines[0][name]
    # A model that comes pruned stays so beside new projections.
    further = fit(
        trained, stage="further", train=dataclasses.replace(TRAIN, steps=3), texts=texts, seed=0,
        place_=place_in(tmp_path), distill=distill, teachers=[teacher],
    )  # fmt: skip
    moved = np.asarray(further.params["layers"]["attention"]["query"]["kernel"][0])
    np.testing.assert_array_equal(moved == 0, kernel == 0)
    assert not np.array_equal(moved, kernel)


@pytest.fixture
def broken(tiny_model):
    """Finite weights whose logits overflow."""
    params = jax.tree.map(np.array, tiny_model.params)
    params["final_norm"]["scale"][:] = 3e38
    return dataclasses.replace(tiny_model, params=params)


def test_steps_that_stay_not_finite_end_the_run_with_the_parameters_before_them_saved(
    broken, texts, tmp_path, place_in
):
    train = dataclasses.replace(TRAIN, max_bad_steps=3)
    with pytest.raises(Diverged, match="3 steps in a row up to step 3"):
        fit(broken, stage="s", train=train, texts=texts, seed=0, place_=place_in(tmp_path))
    (saved,) = [f for f in (tmp_path / "checkpoints" / "s").iterdir() if f.name.isdecimal()]
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(saved / "default")
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(arrays[f"params/final_norm/{name}"], broken.params["final_norm"][name])
    kernel = broken.params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(arrays["params/layers/mlp/up/kernel"], kernel)
    # What is no number is null in JSON, and a skipped step takes no learning rate.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert (first["step"], first["loss"], first["skipped"]) == (2, None, 2)
    assert first["learning_rate"] == pytest.approx(1e-2 / 3)
    assert (last["step"], last["skipped"]) == (3, 3)


def test_a_target_that_skipped_steps_left_unreached_is_told(broken, texts, tmp_path, place_in):
    train = Train(steps=2, batch_size=4, warmup=1)
    place = place_in(tmp_path)
    fit(broken, stage="s", train=train, texts=texts, seed=0, sparsity=Sparsity(target=0.5), place_=place)
    assert "warning s: 0.0% of the prunable weights are zero, not 50.0%" in told(place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": {"sequence_length": 65}}, "exceeds the model's 64 positions"),
        ({"distill": MIXED}, "need a teacher"),
        ({"distill": Distill(forward_kl=1.0)}, "need a teacher"),
        ({"distill": MIXED, "teacher": {"positions": 8}}, "exceeds the model's 8 positions"),
        (
            {"distill": dataclasses.replace(MIXED, layer_map=(0, 1)), "teacher": {}},
            "each of the student's 3 layers, found 2",
        ),
        ({"distill": MIXED, "teacher": {"vocab_size": 200}}, "200 and 300"),
        ({"train": {"batch_size": 8, "accumulate": 4}, "devices": 4}, "2 sequences of a microbatch"),
        ({"train": {"batch_size": 3, "accumulate": 1}, "devices": 2}, "3 sequences of a microbatch"),
        ({"sparsity": Sparsity(target=0.5, prunable=("nothing/*",))}, "no parameter is named by"),
        ({"sparsity": Sparsity(pattern="n_of_m", n=2, m=5, target=0.6)}, "query"),
        (
            {"quantize": FakeQuantize("int4", group=24)},
            "(?s)groups of 24.*attention/key/kernel has 32.*mlp/down/kernel has 128",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_before_any_step(
    tiny_model, texts, tmp_path, change, said, place_in, random_model
):
    wanted = {"train": TRAIN, "texts": texts} | change
    if "teacher" in wanted:
        other = dataclasses.replace(tiny_model.config, **wanted.pop("teacher"))
        wanted["teachers"] = [tiny_model, random_model(other)]
    for name, whole in (("train", TRAIN), ("texts", texts)):
        if isinstance(wanted[name], dict):
            wanted[name] = dataclasses.replace(whole, **wanted[name])
    place = place_in(tmp_path, devices=wanted.pop("devices", 1))
    with pytest.raises(InputError, match=said):
        fit(tiny_model, stage="s", seed=0, place_=place, **wanted)
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_pruned_stays_pruned_whatever_follows(uninterrupted, texts, tmp_path, place_in):
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


@pytest.mark.slow
def test_several_teachers_count_by_their_shares(tiny_model, tiny_config, texts, tmp_path, place_in):
    """The first step's loss is the mean of what each teacher alone gives, by share."""
    teachers = [Model(tiny_config, init_params(tiny_config, seed=5)), tiny_model]
    train = dataclasses.replace(TRAIN, steps=2, warmup=1, log_every=1)

    def first_loss(folder, teachers, shares=()):
        fit(
            tiny_model, stage="s", train=train, texts=texts, seed=3, place_=place_in(tmp_path / folder),
            distill=Distill(reverse_kl=1.0), teachers=teachers, shares=shares,
        )  # fmt: skip
        return metrics(tmp_path / folder)[0]["reverse_kl"]

    far, near = (first_loss(str(i), [each]) for i, each in enumerate(teachers))
    assert far > 0.01
    assert near == pytest.approx(0, abs=1e-6)
    assert first_loss("both", teachers, (1, 3)) == pytest.approx(far / 4, rel=1e-5)
    assert first_loss("alike", teachers) == pytest.approx(far / 2, rel=1e-5)


def test_a_model_trained_for_few_bits_and_resumed_is_rounded_to_itself(tiny_model, texts, tmp_path, place_in):
    train = dataclasses.replace(TRAIN, steps=4, checkpoint_every=2)
    begin = partial(
        fit, tiny_model, stage="s", train=train, texts=texts, seed=3, quantize=FakeQuantize("int4")
    )
    at_once = begin(place_=place_in(tmp_path / "once"))
    with pytest.raises(Interrupted):
        begin(place_=place_in(tmp_path / "twice", stop=3))
    resumed = begin(place_=place_in(tmp_path / "twice"))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, at_once.params)
    for module in resumed.params["layers"]["mlp"].values():
        np.testing.assert_allclose(
            rounded(module["kernel"], SCHEMES["int4"]), module["kernel"], rtol=3e-7, atol=1e-9
        )
    with pytest.raises(InputError, match="quantize"):
        fit(tiny_model, stage="s", train=train, texts=texts, seed=3, place_=place_in(tmp_path / "twice"))
