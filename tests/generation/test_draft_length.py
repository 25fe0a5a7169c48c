import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.generation.draft_length import best_length, expected_tokens, likely, round_costs

MENU = (0, 1, 2, 4, 8)


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.9])
def test_a_round_gives_what_coin_tosses_would(chance):
    tosses = np.random.default_rng(0).random((200_000, 4)) < chance
    kept = np.cumprod(tosses, axis=1).sum(1)
    assert float(expected_tokens(jnp.int32(4), jnp.float32(chance))) == pytest.approx(
        kept.mean() + 1, abs=0.02
    )


def test_the_chance_is_that_of_drafts_cut_short():
    tosses = np.random.default_rng(1).random((20_000, 5)) < 0.6
    kept = np.cumprod(tosses, axis=1).sum(1)
    assert float(likely(jnp.float32(kept.sum()), jnp.float32((kept < 5).sum()))) == pytest.approx(
        0.6, abs=0.01
    )


@pytest.mark.parametrize(
    ("chance", "cost", "length"),
    [(0.99, 0.1, 8), (0.7, 0.1, 4), (0.5, 0.2, 1), (0.3, 0.5, 0), (0.9, 1.0, 0)],
)
def test_drafts_are_as_long_as_they_pay(chance, cost, length):
    costs = round_costs(MENU, 2.0, 2.0 + 8 * cost * 2.0)
    np.testing.assert_allclose(costs, [1 + cost * each for each in MENU], rtol=1e-6)
    assert MENU[int(best_length(MENU, costs, jnp.float32(chance)))] == length
