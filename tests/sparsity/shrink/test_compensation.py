"""Least squares, against numpy's in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.sparsity.shrink.compensation import DAMPING, refit


def problem(bias, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 1
    projection = {"kernel": rng.normal(size=(12, 7))} | ({"bias": rng.normal(size=7)} if bias else {})
    if bias:
        x = np.concatenate([x, np.ones((200, 1))], -1)
    kept = np.array([0, 2, 3, 7, 8, 11])
    small = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in projection.items()}
    return x, projection, kept, refit(small, jnp.asarray(x.T @ x, jnp.float32), jnp.asarray(kept))


@pytest.mark.parametrize("bias", [False, True])
def test_refit_is_the_dampened_least_squares_solution(bias):
    x, projection, kept, found = problem(bias)
    weights = np.concatenate([projection["kernel"], *([projection["bias"][None]] if bias else [])])
    kept = np.append(kept, 12) if bias else kept
    damping = DAMPING * np.diag(x[:, kept].T @ x[:, kept]).mean()
    # Damping is as many more tokens, at which the kept weights are to stay what they are.
    rows = np.concatenate([x[:, kept], np.sqrt(damping) * np.eye(len(kept))])
    aims = np.concatenate([x @ weights, np.sqrt(damping) * weights[kept]])
    expected = np.linalg.lstsq(rows, aims, rcond=None)[0]
    got = np.concatenate([found.projection[n].reshape(-1, 7) for n in ("kernel", "bias")[: 1 + bias]])
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)
    size = np.linalg.norm(x @ weights)
    before, after = (np.linalg.norm(x @ weights - x[:, kept] @ w) / size for w in (weights[kept], expected))
    np.testing.assert_allclose([found.error_before, found.error], [before, after], rtol=1e-3)
    assert after < before


def test_a_twin_takes_over_from_what_went():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype(np.float32)
    x = x[:, [0, 1, 2, 1]]
    kernel = rng.normal(size=(4, 5)).astype(np.float32)
    found = refit({"kernel": jnp.asarray(kernel)}, jnp.asarray(x.T @ x), jnp.array([0, 1, 2]))
    expected = kernel[:3].copy()
    expected[1] += kernel[3]
    np.testing.assert_allclose(found.projection["kernel"], expected, atol=0.05)
    assert found.error < 0.02 < found.error_before


def test_inputs_that_are_always_zero_leave_the_weights_finite_and_alone():
    kernel = jnp.ones((4, 2))
    found = refit({"kernel": kernel}, jnp.zeros((4, 4)), jnp.array([1, 3]))
    np.testing.assert_array_equal(found.projection["kernel"], kernel[:2])
    assert found.error == found.error_before == 0
