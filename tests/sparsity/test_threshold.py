"""Exact selection of the lowest scores, against a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.sparsity.threshold import lowest, ordered_bits

SHAPE = (3, 14, 10)


def by_sorting(scores, count):
    """True at the `count` lowest of one flat group, by numpy's stable sort."""
    marked = np.zeros(scores.size, bool)
    marked[np.argsort(scores.ravel(), kind="stable")[:count]] = True
    return marked.reshape(scores.shape)


def distinct(rng):
    return rng.normal(size=SHAPE)


def few_values(rng):
    return rng.integers(-2, 3, size=SHAPE)


def all_equal(rng):
    return np.full(SHAPE, 0.25)


def mostly_zeros(rng):
    return np.where(rng.random(SHAPE) < 0.8, 0.0, rng.normal(size=SHAPE)) * rng.choice([-1, 1], SHAPE)


def with_infinities(rng):
    return rng.choice([-np.inf, np.inf, 0.0, 1e-38, -3e38, 1e-3], SHAPE)


@pytest.mark.parametrize("draw", [distinct, few_values, all_equal, mostly_zeros, with_infinities])
@pytest.mark.parametrize("count", [0, 1, 69, 70, 139, 140])
def test_lowest_equals_a_stable_sort_of_each_group(draw, count):
    scores = draw(np.random.default_rng(count)).astype(np.float32)
    (marked,) = jax.jit(lambda s, k: lowest([s], k, (-2, -1)))(scores, count)
    np.testing.assert_array_equal(marked, np.stack([by_sorting(s, count) for s in scores]))


@pytest.mark.parametrize("draw", [distinct, few_values, all_equal, with_infinities])
@pytest.mark.parametrize("count", [0, 5, 14])
def test_lowest_ranks_every_column_on_its_own(draw, count):
    scores = draw(np.random.default_rng(7)).astype(np.float32)
    (marked,) = lowest([scores], count, (-2,))
    expected = np.stack([np.stack([by_sorting(c, count) for c in layer.T], axis=1) for layer in scores])
    np.testing.assert_array_equal(marked, expected)


@pytest.mark.parametrize("draw", [distinct, few_values, all_equal])
@pytest.mark.parametrize("count", [0, 1, 421, 500, 580])
def test_lowest_ranks_several_arrays_as_one(draw, count):
    rng = np.random.default_rng(3)
    arrays = [draw(rng).astype(np.float32), draw(rng)[0].astype(np.float32), np.zeros((1, 20), np.float32)]
    marked = lowest(arrays, count)
    together = by_sorting(np.concatenate([a.ravel() for a in arrays]), count)
    np.testing.assert_array_equal(np.concatenate([np.ravel(m) for m in marked]), together)


def test_bfloat16_scores_are_ranked_exactly():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.bfloat16)
    (marked,) = lowest([scores], 1000, (-2, -1))
    np.testing.assert_array_equal(marked, by_sorting(np.asarray(scores, np.float32), 1000))


def test_ordered_bits_keep_the_order_of_floats():
    rising = np.array(
        [-np.inf, -3e38, -1.0, -1e-38, -1e-45, 0.0, 1e-45, 1e-38, 1.0, 3e38, np.inf, np.nan], np.float32
    )
    bits = np.asarray(ordered_bits(jnp.asarray(rising))).astype(np.int64)
    assert (np.diff(bits) > 0).all()
    assert ordered_bits(jnp.float32(-0.0)) == ordered_bits(jnp.float32(0.0))
