import numpy as np
import pytest

from ragjax.data.permutation import mixed, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097, 100_003])
def test_an_order_is_a_bijection(size):
    order = permuted(np.arange(size), size, 7, 3)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_keys_choose_the_order():
    orders = [permuted(np.arange(100), 100, *keys).tolist() for keys in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len(set(map(tuple, orders))) == 4
    assert permuted(np.arange(100), 100, 0, 0).tolist() == orders[0]


def test_keys_may_be_given_for_each_index():
    epochs = np.repeat(np.arange(3, dtype=np.uint64), 50)
    together = permuted(np.tile(np.arange(50), 3), 50, 7, epochs)
    apart = [permuted(np.arange(50), 50, 7, epoch) for epoch in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_orders_are_as_random_as_they_look():
    size, rounds = 50, 500
    places = np.stack([permuted(np.arange(size), size, 1, key) for key in range(rounds)])
    counts = np.array([np.bincount(places[:, i], minlength=size) for i in range(size)])
    chi_squared = ((counts - rounds / size) ** 2 / (rounds / size)).sum() / (size - 1) ** 2
    assert 0.9 < chi_squared < 1.1
    neighbours = np.abs(np.diff(places, axis=1)).mean()
    assert abs(neighbours - (size + 1) / 3) < 0.2


def test_mixed_numbers_are_spread_evenly():
    numbers = mixed(5, np.arange(20_000, dtype=np.uint64))
    assert len(np.unique(numbers)) == 20_000
    assert abs((numbers / 2**64).mean() - 0.5) < 0.01
    flipped = mixed(5, np.arange(20_000, dtype=np.uint64) ^ np.uint64(1))
    assert abs(np.bitwise_count(numbers ^ flipped).mean() - 32) < 0.2
