from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.generation import sampling
from ragjax.generation.filters import Filters
from ragjax.generation.sampling import drawn, likeliest, next_token, sequence_keys

keys = jax.jit(sequence_keys, static_argnums=1)
draw = jax.jit(drawn)


@pytest.mark.parametrize("vocab", [1, 127, 128, 255, 256, 257, 700, 768])
@pytest.mark.parametrize("kernel", [True, False])
def test_the_likeliest_is_the_first_of_the_highest(vocab, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(sampling, "highest_serves", lambda columns: False)
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (50, vocab)).astype(np.float32)
    scores[10:20] = -np.inf
    scores[10:20, rng.integers(vocab)] = -1
    scores[20], scores[21, -1], scores[22] = -np.inf, 9, np.linspace(0, 1, vocab)
    scores[23], scores[24, vocab // 2], scores[25, -1] = np.nan, np.nan, np.nan
    expected = np.where(np.isnan(scores), -np.inf, scores).argmax(-1)
    np.testing.assert_array_equal(likeliest(scores), expected)
    np.testing.assert_array_equal(likeliest(scores.reshape(5, 10, vocab)), expected.reshape(5, 10))


def test_nothing_is_likelier_than_the_only_one():
    assert likeliest(jnp.array([-jnp.inf, -1.0, -jnp.inf])) == 1


def test_draws_over_many_blocks_follow_the_softmax():
    vocab, draws = 700, 200_000
    scores = np.random.default_rng(1).normal(size=vocab).astype(np.float32)
    scores[300:560] = -np.inf
    expected = np.exp(scores.astype(np.float64))
    expected *= draws / expected.sum()
    found = draw(jnp.broadcast_to(scores, (draws, vocab)), keys(jax.random.key(2), draws, 0))
    counts = np.bincount(found, minlength=vocab)
    assert counts[300:560].sum() == 0
    likely = expected > 20
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    # Within five standard deviations of a chi-square's mean.
    assert abs(statistic - likely.sum()) < 5 * np.sqrt(2 * likely.sum())


@pytest.mark.parametrize("only", [0, 255, 256, 699])
def test_a_token_alone_is_drawn_wherever_it_stands(only):
    scores = np.full((64, 700), -np.inf, np.float32)
    scores[:, only] = -3.0
    assert set(np.asarray(draw(scores, keys(jax.random.key(0), 64, 5))).tolist()) == {only}


def test_rows_may_be_greedy_beside_others_that_are_drawn():
    scores = jnp.asarray(np.random.default_rng(3).normal(size=(4, 40)), jnp.float32)
    filters = Filters(jnp.int32([0, 1, 0, 0]), jnp.float32(1), jnp.float32(0))
    temperature = jnp.float32([0, 2, 2, 0])
    several = np.stack(
        [next_token(scores, partial(keys, jax.random.key(9), 4, i), temperature, filters) for i in range(20)]
    )
    best = np.asarray(scores).argmax(-1)
    for row in (0, 1, 3):
        assert (several[:, row] == best[row]).all()
    assert len(set(several[:, 2].tolist())) > 5
