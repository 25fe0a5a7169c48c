"""A training on text its student writes: what it learns from, and when, and that it can be stopped."""

import dataclasses
import json
import logging
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ragjax.config import Distill, Mesh, OnPolicy, Sparsity, Train
from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.errors import InputError
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.training.feed import batch_on_mesh
from ragjax.training.fit import Texts, fit
from ragjax.training.loop import Interrupted
from ragjax.training.on_policy import OwnWriting
from ragjax.training.state import TrainState

SEQ = 12
ENDS = tuple(range(12))
"""A fifth of the vocabulary, so that some sequences end early."""
TRAIN = Train(
    steps=10, batch_size=4, accumulate=2, warmup=2, learning_rate=1e-2, log_every=1, checkpoint_every=4,
    evaluate_every=3,
)  # fmt: skip
ALL = OnPolicy(
    share=(0.3, 0.8), prompt_tokens=4, new_tokens=6, replay=0.5, capacity=6, teacher_share=(0.4, 0.1),
    top_p=0.85, sequences_alike=True, rise=0.1,
)  # fmt: skip
"""Everything at once. A cut at 0.95 would fall within rounding: alike on one device and on eight by luck."""
LOSSES_OF_ALL = Distill(reverse_kl=1.0, cross_entropy=0.3, hidden_mse=0.1)


class Compiled(logging.Handler):
    """Notes the names of the programs that JAX compiles."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        self.names += re.findall(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage())


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "tokens_per_second")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def shaped(layers, **fields):
    return DecoderConfig(
        vocab_size=60, positions=16, width=16, layers=layers, heads=2, mlp_width=32, initializer_range=0.3,
        eos_token=ENDS, **fields,
    )  # fmt: skip


@pytest.fixture(scope="module")
def student(random_model):
    return random_model(shaped(1), seed=0)


@pytest.fixture(scope="module")
def teacher(random_model):
    return random_model(shaped(2), seed=1)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)

    def corpus(size):
        tokens = rng.integers(0, 60, size).astype(np.uint16)
        return Corpus(tokens, np.arange(0, size, 50), utf8_bytes=size, words=size // 4)

    return Texts(corpus(2000), corpus(400), sequence_length=SEQ)


@pytest.fixture(scope="module")
def writes(student, teacher):
    """What a student of a training writes, on so many devices."""

    def make(on_policy, *, devices=1, seed=3, train=TRAIN, **options):
        mesh = make_mesh(Mesh(), jax.devices()[:devices])
        return OwnWriting(
            on_policy, student=student.config, teacher=teacher.config, train=train, sequence_length=SEQ,
            ends=ENDS, seed=seed, mesh=mesh, **{"longest_prompt": on_policy.prompt_tokens, **options},
        )  # fmt: skip

    return make


def begun(writing, model, mesh):
    """A state of which a written batch needs no more."""
    zero = jnp.int32(0)
    return TrainState(zero, place(model.params, mesh), (), zero, zero, writing.memory())


def batch_of(texts, step, mesh, *, rows=4, isolated=False):
    batches = Batches(
        corpus=texts.train, batch_size=rows, sequence_length=SEQ, seed=3, isolate_documents=isolated
    )
    return batch_on_mesh(batches, step, mesh, accumulate=2)


def test_a_coin_of_seed_and_step_decides(writes):
    def kinds(share, seed=3):
        writing = writes(OnPolicy(share=share), train=Train(steps=2000, warmup=1, batch_size=4), seed=seed)
        return [writing.kind(step) for step in range(2000)]

    found = kinds((0.2, 0.6))
    assert found == kinds((0.2, 0.6))
    assert found != kinds((0.2, 0.6), seed=4)
    assert set(found) == {"text", "written"}
    # Means of 0.3 and 0.5 over the halves, with a deviation of 0.015.
    for half, share in ((found[:1000], 0.3), (found[1000:], 0.5)):
        assert half.count("written") / 1000 == pytest.approx(share, abs=0.05)
    assert set(kinds(1.0)) == {"written"}
    assert set(kinds((0.0, 0.0))) == {"text"}


def test_what_was_written_comes_again_by_its_own_share_once_there_is_any(writes, student, texts):
    train = dataclasses.replace(TRAIN, steps=2000)
    writing = writes(OnPolicy(share=0.5, replay=(0.0, 1.0), capacity=8, prompt_tokens=4), train=train)
    before = [writing.kind(step) for step in range(2000)]
    assert "replayed" not in before
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        writing.batch("written", begun(writing, student, mesh), (), batch_of(texts, 0, mesh))
    kinds = [writing.kind(step) for step in range(2000)]
    assert [kind == "text" for kind in kinds] == [kind == "text" for kind in before]
    written = [[kind for kind in half if kind != "text"] for half in (kinds[:1000], kinds[1000:])]
    for half, again in zip(written, (0.25, 0.75), strict=True):
        assert half.count("replayed") / len(half) == pytest.approx(again, abs=0.07)


@pytest.fixture(scope="module")
def uninterrupted(student, teacher, texts, tmp_path_factory, place_in):
    folder = tmp_path_factory.mktemp("whole")
    compiled = Compiled()
    run = partial(
        fit, student, stage="s", train=TRAIN, texts=texts, seed=3, distill=LOSSES_OF_ALL,
        sparsity=Sparsity(target=0.5, stop=8, every=2), teachers=[teacher], on_policy=ALL,
    )  # fmt: skip
    place = place_in(folder)
    logging.getLogger("jax").addHandler(compiled)
    with jax.log_compiles():
        model = run(place_=place)
    logging.getLogger("jax").removeHandler(compiled)
    return run, model, folder, place.console.file.getvalue(), compiled.names


def saved(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "checkpoints/s" / str(TRAIN.steps) / "default")


@pytest.mark.parametrize("stop", [7, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_run_uninterrupted_to_the_last_bit(uninterrupted, tmp_path, stop, place_in):
    """What was written, what is kept of it and how often the loss rose come back too."""
    run, whole, whole_folder, _, _ = uninterrupted
    with pytest.raises(Interrupted, match=f"stopped at step {stop} of 10"):
        run(place_=place_in(tmp_path, stop=stop))
    resumed = run(place_=place_in(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert metrics(tmp_path) == metrics(whole_folder)
    jax.tree.map(np.testing.assert_array_equal, saved(tmp_path), saved(whole_folder))


def test_every_program_is_compiled_once_for_all_kinds_of_batches(uninterrupted):
    _, _, folder, _, compiled = uninterrupted
    assert [compiled.count(name) for name in ("step", "_written", "_replayed")] == [1, 1, 1]
    lines = [line for line in metrics(folder) if "loss" in line]
    own = [line for line in lines if "written_tokens" in line]
    memory = {name: value for name, value in saved(folder).items() if name.startswith("memory/")}
    assert 0 < memory["memory/kept/total"] < 4 * len(own) < 40
    assert memory["memory/steps"] == len(own)


def test_metrics_tell_what_share_was_written_and_how_long_it_is(uninterrupted):
    _, _, folder, shown, _ = uninterrupted
    lines, count = [line for line in metrics(folder) if "loss" in line], 0
    for number, line in enumerate(lines, 1):
        own = "written_tokens" in line
        count += own
        assert line["on_policy"] == count / number
        assert ("own_cross_entropy" in line, "cross_entropy" in line) == (own, not own)
        assert line["tokens"] == number * 4 * SEQ
        if own:
            assert 1 <= line["written_tokens"] <= 6
        length = f" ({line['written_tokens']:.0f} tokens)" if own else ""
        assert f"on-policy {count / number:.0%}{length}  " in shown


def test_pruned_weights_are_exact_zeros_at_the_end(uninterrupted):
    kernel = np.asarray(uninterrupted[1].params["layers"]["mlp"]["up"]["kernel"])
    assert np.count_nonzero(kernel) == kernel.size // 2


def test_a_checkpoint_of_other_writing_is_refused(uninterrupted, tmp_path, place_in):
    run, _, _, _, _ = uninterrupted
    with pytest.raises(Interrupted):
        run(place_=place_in(tmp_path, stop=1))
    for change, said in (
        ({"on_policy": dataclasses.replace(ALL, top_p=0.9)}, r"on_policy.top_p: 0.85 there, 0.9 now"),
        # The share rises by validation losses, so that they must be looked at as often.
        ({"train": dataclasses.replace(TRAIN, evaluate_every=5)}, r"evaluate_every: 3 there, 5 now"),
    ):
        with pytest.raises(InputError, match=said):
            run(place_=place_in(tmp_path), **change)


def test_without_a_share_it_is_the_training_on_text(student, teacher, texts, tmp_path, place_in):
    run = partial(
        fit, student, stage="s", train=TRAIN, texts=texts, seed=3, distill=LOSSES_OF_ALL, teachers=[teacher]
    )
    plain = run(place_=place_in(tmp_path / "plain"))
    off = run(place_=place_in(tmp_path / "off"), on_policy=OnPolicy(prompt_tokens=4, teacher_share=0.5))
    jax.tree.map(np.testing.assert_array_equal, off.params, plain.params)
    assert metrics(tmp_path / "off") == metrics(tmp_path / "plain")
    # A share whose coin never comes goes another way to the same.
    rare = OnPolicy(share=1e-9, prompt_tokens=4, teacher_share=0.5)
    never = run(place_=place_in(tmp_path / "never"), on_policy=rare)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), never.params, plain.params)
    last, expected = (metrics(tmp_path / name)[-1] for name in ("never", "plain"))
    assert last["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("isolated", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_eight_devices_learn_from_the_rows_of_one(writes, student, teacher, texts, isolated):
    found, layouts = [], []
    train = dataclasses.replace(TRAIN, batch_size=16)
    for devices in (1, 8):
        on_policy = dataclasses.replace(ALL, share=1.0, capacity=20)
        writing = writes(on_policy, devices=devices, train=train, isolated=isolated)
        mesh = make_mesh(Mesh(), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            state, taught = begun(writing, student, mesh), (place(teacher.params, mesh),)
            for step in range(3):
                text = batch_of(texts, step, mesh, rows=16, isolated=isolated)
                kind = "replayed" if step == 2 else "written"
                state, batch = writing.batch(kind, state._replace(step=jnp.int32(step)), taught, text)
                layouts.append([jax.tree.map(lambda x: x.sharding, x[:5]) for x in (text, batch)])
                found.append(jax.device_get(batch))
    assert all(of_text == of_written for of_text, of_written in layouts)
    for alone, shared in zip(found[:3], found[3:], strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), shared, alone)
    assert len(np.unique(found[0].weights)) > 3
    assert (found[0].segments is None) != isolated


def test_a_short_prompt_of_a_document_gets_all_new_tokens(writes, student, teacher, texts):
    begins = np.arange(0, 2000, 3)
    short = dataclasses.replace(texts, train=dataclasses.replace(texts.train, starts=begins))
    on_policy = OnPolicy(share=1.0, prompt_tokens=8, new_tokens=9)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        writing = writes(on_policy, isolated=True)
        text = batch_of(short, 0, mesh, isolated=True)
        _, batch = writing.batch("written", begun(writing, student, mesh), (), text)
    batch = jax.device_get(batch)
    targets, counts = (np.moveaxis(x, 0, 1).reshape(4, SEQ) for x in (batch.targets, batch.weights > 0))
    whole = [not np.isin(row[seen], ENDS).any() for row, seen in zip(targets, counts, strict=True)]
    assert any(whole)
    assert {int(n) for n in counts[whole].sum(1)} == {9}


def test_a_pair_is_written_on_from_its_own_prompt(writes, student, texts):
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    writing = writes(OnPolicy(share=1.0, new_tokens=5), longest_prompt=SEQ, own_prompts=True)
    lengths = np.array([[2, SEQ], [7, 1]])
    with jax.set_mesh(mesh):
        text = batch_of(texts, 0, mesh)
        counts = (np.arange(SEQ) >= lengths[..., None] - 1).astype(np.float32)
        _, batch = writing.batch("written", begun(writing, student, mesh), (), text._replace(weights=counts))
    whole, found = np.asarray(text.tokens), jax.device_get(batch)
    for micro, row in np.ndindex(2, 2):
        prompt, counted = lengths[micro, row], found.weights[micro, row] > 0
        np.testing.assert_array_equal(found.tokens[micro, row, :prompt], whole[micro, row, :prompt])
        new = found.targets[micro, row, counted]
        assert np.flatnonzero(counted)[0] == prompt - 1
        assert len(new) == min(5, SEQ + 1 - prompt) or new[-1] in ENDS


def test_a_written_batch_is_learnt_by_its_ratios_and_lengths_and_not_by_its_likelihood(
    writes, student, teacher, texts, tmp_path, place_in
):
    """The loss of the first step, against its formula in float64."""
    on_policy = OnPolicy(share=1.0, prompt_tokens=4, teacher_share=0.5, sequences_alike=True)
    train = dataclasses.replace(TRAIN, steps=2, warmup=1)
    distill = Distill(forward_kl=0.0, reverse_kl=2.0, cross_entropy=5.0)
    fit(
        student, stage="s", train=train, texts=texts, seed=3, distill=distill, teachers=[teacher],
        on_policy=on_policy, place_=place_in(tmp_path),
    )  # fmt: skip
    first = metrics(tmp_path)[0]

    mesh = make_mesh(Mesh(), jax.devices()[:1])
    writing = writes(on_policy, train=train)
    with jax.set_mesh(mesh):
        state, text = begun(writing, student, mesh), batch_of(texts, 0, mesh)
        _, batch = writing.batch("written", state, (place(teacher.params, mesh),), text)
    rows = jax.tree.map(lambda x: np.asarray(x).reshape(4, SEQ), batch._replace(written=None))
    scores = [np.asarray(model(rows.tokens), np.float64) for model in (student, teacher)]
    q, p = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in scores)
    counts = rows.weights > 0
    assert len(set(counts.sum(1))) > 1
    own, other = (np.take_along_axis(x, rows.targets[..., None], -1)[..., 0] for x in (q, p))
    ratio = own / (0.5 * own + 0.5 * other)
    each = (q * (np.log(q) - np.log(p))).sum(-1) * ratio * counts
    expected = (each.sum(1) / counts.sum(1)).mean()
    assert first["reverse_kl"] == pytest.approx(expected, rel=1e-4)
    assert first["loss"] == pytest.approx(2 * expected, rel=1e-4)
    assert first["written_tokens"] == pytest.approx(counts.sum(1).mean())
    # The prompts are those of the text, and what ends a text ends a sequence.
    whole = np.asarray(text.tokens).reshape(4, SEQ)
    np.testing.assert_array_equal(rows.tokens[:, :4], whole[:, :4])
    for row in range(4):
        written = rows.targets[row, counts[row]].tolist()
        assert len(written) == SEQ + 1 - 4 or written[-1] in ENDS
        assert not set(ENDS) & set(written[:-1])


def test_pairs_in_one_sequence_are_written_on(student, teacher, texts, tmp_path, place_in):
    rng = np.random.default_rng(0)
    starts = np.arange(0, 600, 6)
    corpus = Corpus(
        rng.integers(12, 60, 600).astype(np.uint16), starts, utf8_bytes=600, words=150,
        completions=starts + rng.integers(1, 5, 100),
    )  # fmt: skip
    pairs = Texts(corpus, corpus, SEQ, isolate_documents=True, pack_pairs=True)
    fit(
        student, stage="s", train=dataclasses.replace(TRAIN, steps=2, warmup=1), texts=pairs, seed=3,
        distill=LOSSES_OF_ALL, teachers=[teacher], place_=place_in(tmp_path),
        on_policy=OnPolicy(share=1.0, prompt_tokens=3, new_tokens=5),
    )  # fmt: skip
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    assert [1 <= line["written_tokens"] <= 5 for line in lines] == [True, True]


def test_the_share_rises_when_the_validation_loss_has(writes, student):
    writing = writes(OnPolicy(share=0.2, rise=0.3, rise_over=0.1))
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    state = writing.begin(begun(writing, student, mesh), lambda params: 5.0)
    told = []
    for loss in (4.0, 5.05, 5.2, 5.25, 5.4, math.nan, 5.6, 9.0, 9.5):
        state = writing.validated(state, loss)
        told.append((round(float(state.memory.raised), 3), float(state.memory.loss)))
    expected = [(0, 5), (0, 5), (0.3, 5.2), (0.3, 5.2), (0.6, 5.4), (0.6, 5.4), (0.9, 5.6), (1, 9), (1, 9.5)]
    assert told == [(raised, pytest.approx(loss)) for raised, loss in expected]
    assert {writing.kind(step) for step in range(10)} == {"written"}
    # Another, in a run that goes on from that state, decides alike, and looks at no loss before.
    other = writes(OnPolicy(share=0.2, rise=0.3, rise_over=0.1))
    other.begin(state, pytest.fail)
    assert other.kind(0) == "written"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teachers": []}, "need a teacher"),
        ({"distill": Distill(forward_kl=0.0, cross_entropy=1.0)}, "on_policy has nothing to learn by"),
        ({"on_policy": OnPolicy(share=0.5)}, "prompt_tokens 32 must not exceed data.sequence_length 12"),
    ],
)
def test_what_does_not_fit_together_is_refused(student, teacher, texts, tmp_path, change, said, place_in):
    given = {"distill": LOSSES_OF_ALL, "teachers": [teacher], "on_policy": ALL} | change
    with pytest.raises(InputError, match=said):
        fit(student, stage="s", train=TRAIN, texts=texts, seed=3, place_=place_in(tmp_path), **given)
