"""Layer budgets: the whole is kept, whatever the parts."""

import numpy as np
import pytest

from ragjax.sparsity.budgets import BUDGETS, erdos_renyi

WEIGHTS = {
    "query": np.zeros((3, 64, 64)),
    "up": np.zeros((3, 64, 256)),
    "narrow": np.zeros((3, 64, 2)),
}


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9, 0.99])
def test_erk_keeps_the_density_of_the_whole(target):
    sparsity = erdos_renyi(target, WEIGHTS)
    removed = sum(s * WEIGHTS[name].size for name, s in sparsity.items())
    assert removed / sum(w.size for w in WEIGHTS.values()) == pytest.approx(target, abs=1e-12)
    assert all(0 <= s < 1 for s in sparsity.values())


def test_erk_density_follows_the_sum_of_sides_over_their_product():
    kept = {name: 1 - s for name, s in erdos_renyi(0.99, WEIGHTS).items()}
    assert kept["query"] / kept["up"] == pytest.approx((128 / 4096) / (320 / 16384))
    assert kept["narrow"] / kept["up"] == pytest.approx((66 / 128) / (320 / 16384))


def test_erk_leaves_whole_what_would_be_denser_than_dense():
    sparsity = erdos_renyi(0.5, WEIGHTS)
    assert sparsity["narrow"] == 0
    assert 0 < sparsity["query"] < 0.5 < sparsity["up"]


def test_a_uniform_budget_is_the_target():
    assert BUDGETS["uniform"](0.7, WEIGHTS) == 0.7
