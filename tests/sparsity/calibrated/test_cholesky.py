"""The factor of a Hessian: of any unit, with dead inputs, and of too few tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.sparsity.calibrated.cholesky import factorize

SIZE = 24


def gram_of(tokens, seed=0):
    x = np.random.default_rng(seed).normal(size=(tokens, SIZE)).astype(np.float32)
    return x.T @ x


def test_the_inverse_of_r_is_the_upper_factor_of_the_inverse():
    gram = gram_of(100)
    found = factorize(gram, 0.01)
    damped = gram.astype(np.float64) + 0.01 * np.diagonal(gram).mean() * np.eye(SIZE)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_array_equal(found.upper, np.triu(found.upper))
    np.testing.assert_allclose(np.linalg.inv(np.float64(found.upper)), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.upper @ found.upper.T, damped, rtol=1e-5, atol=1e-4)
    assert found.dampening == np.float32(0.01)
    assert not found.dead.any()


def test_dead_inputs_stand_alone_and_do_not_change_the_ridge():
    gram = gram_of(100)
    gram[[3, 20]] = gram[:, [3, 20]] = 0
    live = np.setdiff1d(np.arange(SIZE), [3, 20])
    found = factorize(gram)
    np.testing.assert_array_equal(np.flatnonzero(found.dead), [3, 20])
    mean = np.diagonal(gram)[live].mean()
    expected = gram + np.diag(np.where(found.dead, 1.01, 0.01)) * mean
    np.testing.assert_allclose(found.upper @ found.upper.T, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("asked", [0.0, 1e-9])
def test_a_singular_gram_is_damped_tenfold_until_there_is_a_factor(asked):
    gram = gram_of(3)
    found = jax.jit(factorize)(gram, asked)
    assert jnp.isfinite(found.upper).all()
    assert asked < found.dampening < 1e-3
    lesser = gram + found.dampening / 10 * np.diagonal(gram).mean() * np.eye(SIZE, dtype=np.float32)
    flipped = jax.lax.linalg.cholesky(jnp.asarray(lesser[::-1, ::-1]))
    assert found.dampening == np.float32(1e-6) or not jnp.isfinite(flipped).all()


@pytest.mark.parametrize(
    ("least", "asked", "enough"), [(-0.03, 0.01, 0.1), (-0.3, 0.01, 1.0), (-0.3, 0.0, 1.0), (-4.0, 0.0, 10.0)]
)
def test_an_indefinite_matrix_is_damped_as_far_as_it_needs(least, asked, enough):
    diagonal = np.full(SIZE, (SIZE - least) / (SIZE - 1), np.float32)
    diagonal[7] = least
    found = factorize(np.diag(diagonal), asked)
    assert diagonal.mean() == pytest.approx(1.0)
    assert found.dampening == pytest.approx(enough)
    np.testing.assert_allclose(jnp.diagonal(found.upper) ** 2, diagonal + enough, rtol=1e-4)


def test_a_matrix_that_no_dampening_makes_definite_is_told():
    assert factorize(-np.eye(SIZE, dtype=np.float32)).dampening == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gram_that_is_not_finite_is_told_by_its_dampening(bad):
    gram = gram_of(100)
    gram[2, 5] = gram[5, 2] = bad
    assert not jnp.isfinite(jax.jit(factorize)(gram).dampening)


def test_no_token_at_all_gives_a_factor():
    found = factorize(np.zeros((SIZE, SIZE), np.float32))
    assert found.dead.all()
    assert jnp.isfinite(found.upper).all()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other libraries need room of their own")
def test_no_more_than_one_factor_is_held_beside_the_one_that_is_made():
    memory = (
        jax.jit(factorize).lower(jax.ShapeDtypeStruct((512, 512), jnp.float32)).compile().memory_analysis()
    )
    gram = 512 * 512 * 4
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 2.1 * gram
