"""A training from a cache is the training with the teacher beside it."""

import dataclasses
import json
import math
from functools import partial

import jax
import numpy as np
import pytest

from ragjax.config import Distill, Train
from ragjax.data.batches import Batches
from ragjax.distillation.objective import Objective
from ragjax.errors import InputError
from ragjax.teacher_cache import TeacherCache
from ragjax.training.fit import Texts, fit
from ragjax.training.loop import Interrupted

TRAIN = Train(
    steps=6, batch_size=8, warmup=1, optimizer="sgd", learning_rate=0.3, log_every=1, checkpoint_every=100,
    evaluate_every=0,
)  # fmt: skip
"""More than the four and a half batches of an epoch. Adam would make much of gradients that are noise."""
HALVED = dataclasses.replace(TRAIN, batch_size=16, accumulate=2)
LEARNS = Distill(forward_kl=0.7, cross_entropy=0.3)
MANY = Distill(
    forward_kl=0.5, reverse_kl=(0.0, 0.4), jensen_shannon=0.1, skewed_forward_kl=0.1, skewed_reverse_kl=0.1,
    total_variation=0.1, cross_entropy=0.2, temperature=2.0,
)  # fmt: skip
UNLIKE = ("stage", "time", "tokens_per_second")


@pytest.fixture
def trained(tiny_model, corpus, tmp_path, place_in):
    """Trains the tiny model, and hands back its parameters and what was told of each step."""

    def train(name, *, devices=1, stop=math.inf, isolate=False, train=TRAIN, distill=LEARNS, **answers):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        done = fit(
            tiny_model, stage="s", train=train, distill=distill, seed=3, **answers,
            texts=Texts(corpus, corpus, 16, isolate_documents=isolate, fixed_cuts=True),
            place_=place_in(folder, stop=stop, devices=devices),
        )  # fmt: skip
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        return done.params, [{k: v for k, v in line.items() if k not in UNLIKE} for line in steps]

    return train


@pytest.fixture
def cached(making, kept, tmp_path):
    """Opens a cache of the teacher."""

    def make(kind="likeliest", count=299, dtype="float32", temperature=1.0, isolate=False, **fields):
        folder = tmp_path / f"{kind}-{count}-{dtype}-{temperature}-{isolate}"
        how = kept(kind, count, dtype=dtype, temperature=temperature, **fields)
        making(how, isolate=isolate).write(folder)
        return TeacherCache(folder)

    return make


@pytest.fixture
def forward_kl(tiny_model, teacher, corpus):
    """The loss of the tiny model over the first batch, from a cache or from the teacher itself."""

    def tell(cache=None):
        batches = Batches(
            corpus=corpus, batch_size=8, sequence_length=16, seed=3, fixed_cuts=True, known=cache
        )
        batch = batches.batch(0)
        objective = Objective(tiny_model.config, () if cache else (teacher.config,), LEARNS)
        teachers = () if cache else (teacher.params,)
        terms = jax.jit(objective)(tiny_model.params, teachers, batch, batch.weights / batch.weights.sum())[1]
        return float(terms["forward_kl"])

    return tell


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    ("count", "options"),
    [(299, {"distill": MANY}), (300, {"isolate": True, "train": HALVED, "devices": 8})],
)
def test_with_all_tokens_it_is_the_run_with_the_teacher_in_the_step(trained, cached, teacher, count, options):
    temperature = 2.0 if options.get("distill") is MANY else 1.0
    cache = cached(count=count, temperature=temperature, isolate=options.get("isolate", False))
    beside, expected = trained("beside", teachers=[teacher], **options)
    params, found = trained("cached", cache=cache, **options)
    assert len(found) == 6
    for line, before in zip(found, expected, strict=True):
        assert line.keys() == before.keys()
        for name, value in line.items():
            # The norm of differences of probabilities has fewer digits than the losses.
            digits = 1e-4 if name == "gradient_norm" else 1e-5
            assert value == pytest.approx(before[name], rel=digits, abs=1e-7), name
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), params, beside)


def test_fewer_tokens_leave_a_gap_that_closes(forward_kl, cached):
    """The rest as one outcome never makes the models less alike, and float16 costs less than that."""
    exact = forward_kl()
    few, more, most = (forward_kl(cached(count=n, dtype="float16")) / exact for n in (4, 64, 250))
    assert few < more < most < 1.001
    assert more > 0.4
    assert most > 0.95


def test_a_student_learns_from_draws_as_it_would_from_the_teacher(forward_kl, trained, cached):
    cache = cached("drawn", 100, seed=3)
    assert forward_kl(cache) == pytest.approx(forward_kl(), rel=0.05)
    first, *_, last = trained("drawn", cache=cache)[1]
    assert first["forward_kl"] == pytest.approx(forward_kl(cache), rel=1e-5)
    assert last["forward_kl"] < first["forward_kl"]


def test_a_resumed_run_is_the_run_uninterrupted_and_keeps_to_its_cache(trained, cached):
    cache = cached(count=20, dtype="float16")
    whole = trained("whole", cache=cache)
    with pytest.raises(Interrupted, match="stopped at step 3 of 6"):
        trained("stopped", cache=cache, stop=3)
    with pytest.raises(InputError, match=r"teacher_cache: .* there"):
        trained("stopped", cache=cached(count=21, dtype="float16"))
    params, lines = trained("stopped", cache=cache)
    assert lines == whole[1]
    jax.tree.map(np.testing.assert_array_equal, params, whole[0])


def test_what_looks_inside_the_teacher_or_at_other_tokens_is_refused(trained, cached):
    cache = cached(count=20)
    with pytest.raises(InputError, match=r"distill\.hidden_mse need a teacher, found none"):
        trained("a", cache=cache, distill=dataclasses.replace(LEARNS, hidden_mse=0.1))
    held = dataclasses.replace(cache.manifest.held, vocab_size=299)
    cache.manifest = dataclasses.replace(cache.manifest, held=held)
    with pytest.raises(InputError, match="differ in vocabulary: 299 and 300 tokens"):
        trained("a", cache=cache)
