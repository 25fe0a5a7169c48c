"""What is kept of a teacher: exact over the outcomes told apart, without bias where they were drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.distillation.known import binned, drawn, likeliest
from ragjax.distillation.losses import LOSSES, LOWEST, Pair, centred, forward_kl, log_probs

TOKENS, VOCAB = 5, 12


@pytest.fixture(scope="module")
def both():
    student, teacher = 1.5 * np.random.default_rng(0).normal(size=(2, TOKENS, VOCAB))
    return student.astype(np.float32), teacher.astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def summed(name, student, teacher, k):
    """The loss over k outcomes and the rest, summed over tokens."""
    known = likeliest(centred(teacher), k)
    return LOSSES[name](Pair(binned(centred(student), known.ids), known.log_probs)).sum()


@pytest.mark.parametrize("k", [1, 4, VOCAB - 1])
def test_value_and_gradient_are_those_of_the_binned_distributions(both, name, formula, slopes_of, k):
    student, teacher = both
    value, gradient = jax.value_and_grad(summed, argnums=1)(name, student, teacher, k)

    def exact(student):
        return formula(name, student, teacher, top_k=k)

    close(value, exact(student).sum())
    close(gradient, slopes_of(exact, student))


@pytest.mark.parametrize("k", [VOCAB - 1, VOCAB])
def test_nothing_is_lost_where_all_outcomes_are_told_apart(both, name, formula, slopes_of, k):
    student, teacher = both
    value, gradient = jax.value_and_grad(summed, argnums=1)(name, student, teacher, k)

    def exact(student):
        return formula(name, student, teacher)

    close(value, exact(student).sum())
    close(gradient, slopes_of(exact, student))


def test_the_likeliest_are_kept_with_the_mass_of_all_others(both):
    logits = centred(both[1])
    known = likeliest(logits, 3)
    p = np.exp(both[1].astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, -1)
    np.testing.assert_array_equal(known.ids, order[:, :3])
    close(np.exp(known.log_probs[:, :3]), np.take_along_axis(p, order[:, :3], -1))
    close(np.exp(known.log_probs[:, 3]), np.take_along_axis(p, order[:, 3:], -1).sum(-1))


def test_telling_fewer_outcomes_apart_never_makes_two_distributions_more_unlike(both):
    """The data processing inequality of the KL divergence."""
    losses = [float(summed("forward_kl", *both, k)) for k in (1, 2, 4, 8)]
    assert losses == sorted(losses)
    assert losses[0] < 0.9 * losses[-1]


def test_logits_of_what_cannot_be_take_no_share_of_the_rest(both):
    logits = np.concatenate([both[0], np.full((TOKENS, 4), LOWEST, np.float32)], -1)
    ids = np.argsort(-both[0], -1)[:, :3]
    np.testing.assert_array_equal(binned(centred(logits), ids), binned(centred(both[0]), ids))


def test_draws_have_the_teachers_probabilities_and_say_them(both):
    logits = centred(both[1])
    known = drawn(logits, 20_000, jax.random.key(0))
    p = np.exp(log_probs(logits))
    np.testing.assert_allclose(
        np.exp(known.log_probs), np.take_along_axis(p, np.asarray(known.ids), -1), rtol=1e-6
    )
    for row in range(TOKENS):
        found = np.bincount(known.ids[row], minlength=VOCAB) / 20_000
        deviation = np.sqrt(p[row] * (1 - p[row]) / 20_000)
        assert (np.abs(found - p[row]) < 4.5 * deviation).all()


def test_draws_estimate_the_forward_kl_and_its_gradient_without_bias(both):
    """By a z-test of the mean over many keys, of a few draws each."""
    student, teacher = both

    def estimate(student, key):
        known = drawn(centred(jnp.asarray(teacher)), 3, key)
        found = jnp.take_along_axis(log_probs(centred(student)), known.ids, -1)
        return (known.log_probs - found).mean(-1).sum()

    keys = jax.random.split(jax.random.key(1), 4000)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(estimate), (None, 0)))(student, keys)

    def exact(student):
        return forward_kl(Pair(centred(student), centred(teacher))).sum()

    value, gradient = jax.value_and_grad(exact)(student)
    for found, expected in ((values, value), (gradients, gradient)):
        found = np.asarray(found, np.float64)
        error = found.std(0, ddof=1) / np.sqrt(len(keys))
        assert (np.abs(found.mean(0) - expected) < 4.5 * error + 1e-6).all()
        assert np.abs(error).max() < 0.05
