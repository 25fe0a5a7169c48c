import math
from itertools import pairwise

import pytest

from ragjax.report.scales import Scale, scale_of, spread


def test_linear_and_logarithmic_places_follow_their_formula():
    assert Scale(-2, 6).fraction(0) == 0.25
    assert Scale(10, 1000, log=True).fraction(100) == pytest.approx(0.5)


def test_ticks_are_round_and_inside():
    assert Scale(0, 21.3).ticks(4) == [0, 10, 20]
    assert Scale(0.25, 0.55).ticks() == [0.3, 0.4, 0.5]
    assert Scale(20, 300, log=True).ticks() == [20, 50, 100, 200]
    assert Scale(-3e-7, 3e-7).ticks() == pytest.approx([-2e-7, 0, 2e-7], abs=1e-12)


@pytest.mark.parametrize("values", [[5], [0], [-1, -1], [1e-9, 2e-9], [3, 1e12]])
def test_an_axis_holds_its_values_and_has_a_length(values):
    for from_zero in (False, True):
        scale = scale_of(values, from_zero=from_zero)
        assert scale.low < scale.high
        assert all(-1e-9 <= scale.fraction(v) <= 1 + 1e-9 for v in values)
        assert scale.ticks()


def test_an_axis_from_zero_begins_there():
    scale = scale_of([30.0, 45.0], from_zero=True)
    assert (scale.low, scale.high) == (0, 50)


def test_an_axis_turns_logarithmic_only_beyond_the_ratio():
    assert not scale_of([30, 140], log_beyond=5).log
    assert scale_of([30, 160], log_beyond=5).log
    assert not scale_of([-1, 160], log_beyond=5).log


def test_spread_moves_least_in_the_least_squares_sense():
    # Two labels 4 apart that need 10: each gives way by 3; the third is free.
    assert spread([50, 54, 90], 10, 0, 100) == [47, 57, 90]
    # Pushed from the edge as little as needed.
    assert spread([0, 0], 10, 5, 100) == [5, 15]
    assert spread([99, 98], 10, 0, 100) == [100, 90]


def test_spread_keeps_order_and_gap():
    given = [math.sin(i * 7.3) * 100 + 100 for i in range(12)]
    moved = spread(given, 9, 0, 220)
    pairs = sorted(zip(given, moved, strict=True))
    assert all(b[1] - a[1] >= 9 - 1e-9 for a, b in pairwise(pairs))
    assert min(moved) >= 0
    assert max(moved) <= 220
