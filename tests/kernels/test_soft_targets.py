import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import soft_targets as module
from ragjax.kernels.machine import Vectors
from ragjax.kernels.soft_targets import soft_targets, soft_targets_serve

SIZES = [(1, 16, 16), (3, 64, 51), (9, 128, 33), (20, 384, 16), (2, 50_304, 50_257)]
"""Rows, columns and outcomes: whole vectors of outcomes and not, with vectors beyond them and without."""


def scores(rows, columns, seed):
    return (3 * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


def rest(rows, outcomes):
    rng = np.random.default_rng(7)
    return rng.integers(0, outcomes, rows).astype(np.int32), rng.random((rows, 2)).astype(np.float32)


def expected(student, teacher, targets, counts, outcomes):
    """Gradient and losses, in plain NumPy and float64."""

    def log_probs(given):
        given = given[:, :outcomes].astype(np.float64)
        given = given - given.max(1, keepdims=True)
        return given - np.log(np.exp(given).sum(1, keepdims=True))

    own, hits = log_probs(student), np.arange(outcomes) == targets[:, None]
    gradient = counts[:, :1] * (np.exp(own) - hits)
    divergence = np.zeros(len(own))
    if teacher is not None:
        other = log_probs(teacher)
        gradient += counts[:, 1:] * (np.exp(own) - np.exp(other))
        divergence = (np.exp(other) * (other - own)).sum(1)
    gradient = np.pad(gradient, ((0, 0), (0, student.shape[1] - outcomes)))
    return gradient, -(own * hits).sum(1), divergence


def check(found, exact):
    np.testing.assert_allclose(found.gradient, exact[0], atol=1e-6)
    np.testing.assert_allclose(found.cross_entropy, exact[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.forward_kl, exact[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_losses_and_gradient_are_numpys_in_float64(size, taught):
    rows, columns, outcomes = size
    student, teacher = scores(rows, columns, 0), scores(rows, columns, 1) if taught else None
    targets, counts = rest(rows, outcomes)
    found = jax.jit(lambda *given: soft_targets(*given, outcomes))(student, teacher, targets, counts)
    exact = expected(student, teacher, targets, counts, outcomes)
    check(found, exact)
    assert not np.asarray(found.gradient)[:, outcomes:].any()


@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(8, 16)])
def test_other_processors_vectors(kind, monkeypatch):
    monkeypatch.setattr(module, "vectors", lambda: kind)
    student, teacher, (targets, counts) = scores(5, 40, 0), scores(5, 40, 1), rest(5, 37)
    check(
        soft_targets(student, teacher, targets, counts, 37), expected(student, teacher, targets, counts, 37)
    )


def test_a_student_like_its_teacher_has_nothing_to_learn():
    student, (targets, counts) = scores(4, 64, 0), rest(4, 60)
    found = soft_targets(student, student + 5, targets, counts * np.float32([0, 1]), 60)
    np.testing.assert_allclose(found.forward_kl, 0, atol=1e-6)
    np.testing.assert_allclose(found.gradient, 0, atol=1e-6)


def test_scores_far_apart_neither_overflow_nor_vanish():
    student, teacher = np.zeros((2, 32), np.float32), np.zeros((2, 32), np.float32)
    student[0, 3], student[1], teacher[:, 5] = 3e4, -1e6, 2e4
    student[1, 5] = -1e6 + 2
    targets, counts = np.array([3, 5], np.int32), np.ones((2, 2), np.float32)
    check(
        soft_targets(student, teacher, targets, counts, 32), expected(student, teacher, targets, counts, 32)
    )


@pytest.mark.parametrize("target", [-1, -100, 30, 31, 10_000])
def test_a_target_that_is_no_outcome_is_not_looked_for(target):
    student, teacher, (targets, counts) = scores(3, 32, 0), scores(3, 32, 1), rest(3, 30)
    known = soft_targets(student, teacher, targets, counts, 30)
    found = soft_targets(student, teacher, np.array([targets[0], target, targets[2]], np.int32), counts, 30)
    for before, after in zip(known, found, strict=True):
        np.testing.assert_array_equal(before[::2], after[::2])
    gradient = np.array(known.gradient[1])
    gradient[targets[1]] += counts[1, 0]
    np.testing.assert_allclose(found.gradient[1], gradient, atol=1e-6)
    assert found.forward_kl[1] == known.forward_kl[1]


def test_what_counts_nothing_has_no_gradient():
    student, teacher, (targets, counts) = scores(3, 32, 0), scores(3, 32, 1), rest(3, 30)
    counts[1] = 0
    gradient = np.asarray(soft_targets(student, teacher, targets, counts, 30).gradient)
    assert not gradient[1].any()
    assert gradient[0].any()
    assert gradient[2].any()


@pytest.mark.parametrize("of", ["student", "teacher"])
def test_what_is_no_number_is_told(of):
    student, teacher, (targets, counts) = scores(3, 32, 0), scores(3, 32, 1), rest(3, 30)
    {"student": student, "teacher": teacher}[of][1, 4] = np.nan
    found = soft_targets(student, teacher, targets, counts, 30)
    assert np.isnan(found.forward_kl[1])
    assert np.isnan(found.gradient[1, 4])
    assert np.isfinite(found.forward_kl[::2]).all()
    assert np.isfinite(found.cross_entropy[::2]).all()


def test_the_gradient_goes_where_the_scores_were():
    student, teacher, (targets, counts) = scores(8, 128, 0), scores(8, 128, 1), rest(8, 128)

    def gradient(student, teacher):
        return soft_targets(student, teacher, targets, counts, 128).gradient

    program = jax.jit(gradient, donate_argnums=0).lower(student, teacher).compile()
    assert program.memory_analysis().temp_size_in_bytes < student.nbytes
    kept = jnp.asarray(student)
    np.testing.assert_array_equal(jax.jit(gradient)(kept, teacher), program(jnp.array(student), teacher))
    np.testing.assert_array_equal(kept, student)


def test_one_array_may_be_student_and_teacher():
    student, (targets, counts) = scores(4, 64, 0), rest(4, 60)
    found = jax.jit(lambda same: soft_targets(same, same, targets, counts, 60))(student)
    check(found, expected(student, student, targets, counts, 60))


def test_machine_code_is_given_nothing_it_would_misread():
    student, teacher, (targets, counts) = scores(3, 32, 0), scores(3, 32, 1), rest(3, 30)
    soft_targets(student, teacher, targets, counts, 30)
    wrong = [
        (student[:, :31], teacher[:, :31], targets, counts, 30),
        (student, teacher[:2], targets, counts, 30),
        (student, teacher[:, :16], targets, counts, 30),
        (student.astype(np.float16), teacher, targets, counts, 30),
        (student, teacher.astype(np.float16), targets, counts, 30),
        (student, teacher, targets[:2], counts, 30),
        (student, teacher, targets.astype(np.int8), counts, 30),
        (student, teacher, targets, counts[:, :1], 30),
        (student, teacher, targets, counts.astype(np.float16), 30),
        (student, teacher, targets, counts, 33),
        (student, teacher, targets, counts, 0),
    ]
    for given in wrong:
        with pytest.raises(AssertionError):
            soft_targets(*given)


def test_they_serve_whole_vectors_where_there_are_kernels(monkeypatch):
    assert soft_targets_serve(128)
    assert not soft_targets_serve(129)
    monkeypatch.setattr(module, "kernels_serve", lambda: False)
    assert not soft_targets_serve(128)
