"""Learning from pairs: the loss is that of the completions, whatever stands around them."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from ragjax.config import Distill, Mesh, OnPolicy, Train
from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.distillation.objective import Objective
from ragjax.evaluation.perplexity import score
from ragjax.evaluation.windows import pair_windows
from ragjax.generation import generate_tokens
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.teacher_cache import (
    Held,
    Kept,
    TeacherCache,
    asked,
    teacher_digest,
    text_digest,
    write_cache,
)
from ragjax.teacher_cache.manifest import windows_digest
from ragjax.training.fit import Texts, fit, make_validation
from ragjax.training.loop import Interrupted

LEARNS = Distill(forward_kl=0.7, cross_entropy=0.3)
ALL = Distill(
    forward_kl=0.5, reverse_kl=0.4, jensen_shannon=0.3, skewed_reverse_kl=0.2, total_variation=0.1,
    cross_entropy=0.2, hidden_mse=0.1, hidden_cosine=0.1, relations=0.1,
)  # fmt: skip
TRAIN = Train(
    steps=6, batch_size=8, warmup=1, optimizer="sgd", learning_rate=0.3, log_every=1, checkpoint_every=2,
    evaluate_every=3,
)  # fmt: skip


def _pairs(count: int, seed: int = 0) -> Corpus:
    """Random pairs of 1 to 9 tokens and 1 to 14."""
    rng = np.random.default_rng(seed)
    prompts, completions = rng.integers(1, 10, count), rng.integers(1, 15, count)
    ends = np.cumsum(prompts + completions)
    starts = ends - prompts - completions
    tokens = rng.integers(0, 300, ends[-1]).astype(np.uint16)
    return Corpus(tokens, starts, utf8_bytes=0, words=0, completions=starts + prompts)


@pytest.fixture(scope="module")
def pairs() -> Corpus:
    return _pairs(32)


@pytest.fixture(scope="module")
def teacher(tiny_config):
    return Model(tiny_config, init_params(tiny_config, seed=5))


def _terms(model, teacher, batch, distill=LEARNS):
    objective = Objective(model.config, (teacher.config,), distill)
    weights = batch.weights / batch.weights.sum()
    terms = jax.jit(objective)(model.params, (teacher.params,), batch, weights)[1]
    return {name: float(value) for name, value in terms.items()}


def test_the_losses_are_those_of_torch_over_the_tokens_of_completions_alone(
    tiny_model, teacher, pairs, as_torch
):
    torch = pytest.importorskip("torch")
    student, taught = as_torch(tiny_model).double(), as_torch(teacher).double()
    entropies, divergences = [], []
    for number in range(pairs.documents):
        ids = torch.tensor(pairs.document(number).astype(np.int64))[None]
        before = pairs.completions[number] - pairs.starts[number]
        with torch.no_grad():
            ours, theirs = (net(ids).logits[0, before - 1 : -1].log_softmax(-1) for net in (student, taught))
        entropies.append(-ours.gather(1, ids[0, before:, None])[:, 0])
        divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
    for pack in (False, True):
        batches = Batches(corpus=pairs, batch_size=1, sequence_length=30, pack_pairs=pack)
        whole = dataclasses.replace(batches, batch_size=batches.windows).batch(0)
        found = _terms(tiny_model, teacher, whole)
        assert found["cross_entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-5)
        assert found["forward_kl"] == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-4)


def test_padding_changes_no_loss(tiny_model, teacher, pairs):
    batches = Batches(corpus=pairs, batch_size=32, sequence_length=24)
    batch = batches.batch(0)
    expected = _terms(tiny_model, teacher, batch, ALL)
    longer = dataclasses.replace(batches, sequence_length=40).batch(0)
    assert _terms(tiny_model, teacher, longer, ALL) == pytest.approx(expected, rel=2e-5)
    used = np.arange(24) < (24 - np.argmax(batch.weights[:, ::-1] > 0, axis=1))[:, None]
    other = np.random.default_rng(7).integers(0, 300, (2, 32, 24)).astype(np.int32)
    changed = batch._replace(
        tokens=np.where(used, batch.tokens, other[0]), targets=np.where(used, batch.targets, other[1])
    )
    assert not used.all()
    assert _terms(tiny_model, teacher, changed, ALL) == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def trained(tiny_model, pairs, tmp_path, place_in):
    """Trains on the pairs; hands back the parameters, what was told of each step, and what was shown."""

    def train(name, *, devices=1, stop=math.inf, pack=False, **answers):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        place = place_in(folder, stop=stop, devices=devices)
        texts = Texts(pairs, _pairs(8, seed=1), 16, fixed_cuts=True, pack_pairs=pack)
        done = fit(
            tiny_model, stage="s", train=TRAIN, distill=LEARNS, seed=3, texts=texts, place_=place, **answers
        )  # fmt: skip
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        unlike = ("stage", "time", "tokens_per_second")
        told = [{name: value for name, value in line.items() if name not in unlike} for line in lines]
        return done.params, told, place.console.file.getvalue()

    return train


@pytest.mark.parametrize("pack", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_resumed_run_is_the_run_uninterrupted_to_the_last_bit(trained, teacher, pack):
    whole, expected, shown = trained("whole", teachers=[teacher], pack=pack)
    assert "pairs: 32, sequences: " in shown
    assert "completions cut at 16 tokens: " in shown
    with pytest.raises(Interrupted):
        trained("cut", teachers=[teacher], pack=pack, stop=4)
    params, told, _ = trained("cut", teachers=[teacher], pack=pack)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert told == expected
    tokens = [line["tokens"] for line in told if "tokens" in line]
    assert tokens == sorted(tokens)
    assert len(tokens) == 6


def test_a_mesh_trains_alike(trained, teacher):
    _, expected, _ = trained("one", teachers=[teacher])
    _, found, _ = trained("eight", teachers=[teacher], devices=8)
    for line, before in zip(found, expected, strict=True):
        assert line == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("pack", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cached_teacher_gives_the_losses_of_the_one_in_the_step(trained, teacher, pairs, pack, tmp_path):
    _, expected, _ = trained("beside", teachers=[teacher], pack=pack)
    batches = Batches(
        corpus=pairs, batch_size=8, sequence_length=16, seed=3, fixed_cuts=True, pack_pairs=pack
    )
    windows = batches.visited(TRAIN.steps)
    held = Held(
        text=text_digest(pairs, isolate_documents=False, pack_pairs=pack), teacher=teacher_digest(teacher),
        computed_in="float32", vocab_size=300, sequence_length=16, isolate_documents=False,
        windows=batches.windows, sequences=len(windows), which=windows_digest(windows),
        kept=Kept(kind="likeliest", count=299, dtype="float32", temperature=1.0),
    )  # fmt: skip
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    placed = dataclasses.replace(teacher, params=place(teacher.params, mesh))
    ask = asked(placed, held, batches, mesh, chunk_tokens=512)
    write_cache(tmp_path / "cache", held, windows, ask, batch_rows=8)
    _, found, _ = trained("cached", cache=TeacherCache(tmp_path / "cache"), pack=pack)
    for line, before in zip(found, expected, strict=True):
        assert line.pop("gradient_norm", 0) == pytest.approx(before.pop("gradient_norm", 0), rel=1e-4)
        assert line == pytest.approx(before, rel=1e-5)


def test_a_student_goes_on_from_the_prompts_and_learns_from_what_it_wrote(
    tiny_model, teacher, pairs, tmp_path, place_in
):
    fit(
        tiny_model, stage="s", train=dataclasses.replace(TRAIN, steps=2), distill=Distill(), seed=3,
        texts=Texts(pairs, pairs, 24, isolate_documents=True), teachers=[teacher],
        on_policy=OnPolicy(share=1.0, prompt_tokens=1, new_tokens=5, temperature=0.0),
        place_=place_in(tmp_path),
    )  # fmt: skip
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])

    batch = Batches(corpus=pairs, batch_size=8, sequence_length=24, seed=3).batch(0)
    sizes = np.argmax(batch.weights > 0, axis=1) + 1
    prompts = [row[:size].tolist() for row, size in zip(batch.tokens, sizes, strict=True)]
    answers = generate_tokens(tiny_model, prompts, max_new_tokens=5)
    starts = np.cumsum([0, *(sizes + 5)])[:-1]
    tokens = np.concatenate([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)])
    wrote = Corpus(tokens, starts, utf8_bytes=0, words=0, completions=starts + sizes)
    whole = Batches(corpus=wrote, batch_size=8, sequence_length=24).batch(0)
    expected = _terms(tiny_model, teacher, whole, Distill())
    assert line["forward_kl"] == pytest.approx(expected["forward_kl"], rel=1e-4)


def test_pairs_their_packing_and_the_same_text_have_different_digests(pairs):
    digests = {
        text_digest(corpus, isolate_documents=False, pack_pairs=pack)
        for corpus, pack in ((pairs, False), (pairs, True), (pairs.as_text, False))
    }
    moved = dataclasses.replace(pairs, completions=pairs.completions + 1)
    assert len(digests | {text_digest(moved, isolate_documents=False)}) == 4


def test_the_validation_loss_is_that_of_the_completions(tiny_model, pairs):
    texts, mesh = Texts(pairs, pairs, 32), make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        found = make_validation(tiny_model.config, texts, dataclasses.replace(TRAIN, batch_size=16), mesh)(
            tiny_model.params
        )
    expected = score(tiny_model, pairs.tokens, pair_windows(pairs, sequence_length=32), batch_size=8)
    assert found == pytest.approx(expected.total_nats / expected.tokens, rel=1e-5)
