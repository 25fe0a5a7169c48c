"""Losses between hidden states against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.distillation.hidden import HIDDEN, hidden_cosine


def mse(student, teacher):
    return np.square(student - teacher).mean((0, -1))


def cosine(student, teacher):
    length = np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
    return (1 - (student * teacher).sum(-1) / length).mean(0)


FORMULAS = {"hidden_mse": mse, "hidden_cosine": cosine}


def states(seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.random((2, 3))
    return *rng.normal(size=(2, 2, 2, 3, 5)), weights / weights.sum()


def test_every_loss_has_its_formula_here():
    assert HIDDEN.keys() == FORMULAS.keys()


@pytest.mark.parametrize("name", HIDDEN)
def test_the_loss_and_its_gradient_equal_float64(name):
    student, teacher, weights = states()
    given = [x.astype(np.float32) for x in (student, teacher, weights)]
    value, gradient = jax.value_and_grad(HIDDEN[name])(*given)

    def exact(student):
        return (FORMULAS[name](student, teacher) * weights).sum()

    np.testing.assert_allclose(value, exact(student), rtol=1e-5)
    slopes = np.empty_like(student)
    for place in np.ndindex(student.shape):
        step = np.zeros_like(student)
        step[place] = 1e-6
        slopes[place] = (exact(student + step) - exact(student - step)) / 2e-6
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-5 * np.abs(slopes).max())


@pytest.mark.parametrize("name", HIDDEN)
def test_tokens_without_weight_change_nothing(name):
    student, teacher, weights = (x.astype(np.float32) for x in states())
    weights[0, 1] = 0
    disturbed = student.copy()
    disturbed[:, 0, 1] += 100
    assert HIDDEN[name](student, teacher, weights) == HIDDEN[name](disturbed, teacher, weights)


@pytest.mark.parametrize("name", HIDDEN)
def test_half_precision_states_are_compared_in_float32(name):
    student, teacher, weights = states()
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
    exact = (FORMULAS[name](*(np.asarray(x, np.float64) for x in halves)) * weights).sum()
    found = HIDDEN[name](*halves, weights.astype(np.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_a_state_of_zero_has_a_finite_gradient():
    _, teacher, weights = (x.astype(np.float32) for x in states())
    value, gradient = jax.value_and_grad(hidden_cosine)(np.zeros_like(teacher), teacher, weights)
    assert value == pytest.approx(1.0)
    assert np.isfinite(gradient).all()
