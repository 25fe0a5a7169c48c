"""The sweep with rounding for a decision is GPTQ, and without one changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.sparsity.calibrated.cholesky import factorize
from ragjax.sparsity.calibrated.column_sweep import Decide, column_sweep

LEVELS = 7


def problem(inputs, outputs, matrices=(), seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(4 * inputs, inputs)) @ (np.eye(inputs) + 0.3 * rng.normal(size=(inputs, inputs)))
    x = mixed.astype(np.float32)
    return rng.normal(size=(*matrices, inputs, outputs)).astype(np.float32), x.T @ x


def upper_of_inverse(gram):
    damped = gram.astype(np.float64) + 0.01 * np.diagonal(gram).mean() * np.eye(len(gram))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def gptq(kernel, gram, group):
    """Column by column, every later column updated at once."""
    upper, w = upper_of_inverse(gram), kernel.astype(np.float64).T
    for j in range(w.shape[1]):
        if j % group == 0:
            step = np.abs(w[:, j : j + group]).max(1) / LEVELS
        q = np.clip(np.rint(w[:, j] / step), -LEVELS, LEVELS) * step
        error = (w[:, j] - q) / upper[j, j]
        w[:, j + 1 :] -= np.outer(error, upper[j, j + 1 :])
        w[:, j] = q
    return w.T


def choose_grid(weights, scale, known):
    return jnp.broadcast_to(jnp.abs(weights).max(0) / LEVELS, weights.shape)


def to_grid(weight, step):
    return jnp.clip(jnp.rint(weight / step), -LEVELS, LEVELS) * step


ROUND = Decide(choose_grid, to_grid)


def output_error(kernel, changed, gram):
    change = np.float64(kernel) - np.float64(changed)
    return np.sum(change * (gram.astype(np.float64) @ change))


@pytest.mark.parametrize(("inputs", "group"), [(300, 128), (40, 128), (64, 4), (150, 48), (260, 200)])
def test_rounding_to_four_bits_is_gptq(inputs, group):
    kernel, gram = problem(inputs, 12)
    found, steps = jax.jit(lambda k, g: column_sweep(k, factorize(g).upper, ROUND, every=group))(kernel, gram)
    expected = gptq(kernel, gram, group)
    # A weight halfway between two values may fall to either in float32, and moves what follows.
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.02
    assert output_error(kernel, found, gram) == pytest.approx(output_error(kernel, expected, gram), rel=0.02)
    np.testing.assert_allclose(np.rint(found / steps) * steps, found, rtol=1e-6)


def test_it_errs_less_than_rounding_to_the_nearest():
    kernel, gram = problem(256, 16)
    swept, _ = column_sweep(kernel, factorize(gram).upper, ROUND)
    nearest = to_grid(kernel, np.abs(kernel).max(0) / LEVELS)
    assert output_error(kernel, swept, gram) < 0.6 * output_error(kernel, nearest, gram)


def test_where_nothing_is_changed_nothing_moves():
    kernel, gram = problem(150, 5, (2,))
    keep = Decide(lambda weights, scale, known: (), lambda weight, choice: weight)
    np.testing.assert_array_equal(column_sweep(kernel, factorize(gram).upper, keep)[0], kernel)


def test_products_are_of_full_float32_on_accelerators_too():
    kernel, gram = problem(150, 5)
    text = jax.jit(lambda k, r: column_sweep(k, r, ROUND, every=48)).lower(kernel, gram).as_text()
    assert 0 < text.count("dot_general ") == text.count("precision = [HIGHEST, HIGHEST]")
