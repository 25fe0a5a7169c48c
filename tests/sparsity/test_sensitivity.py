"""The budget that curves of loss ask for, against closed forms and a linear program."""

import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.sparsity.sensitivity import Sensitivity, budget

LEVELS = (0.25, 0.5, 0.75, 1.0)


def curves(**by_name):
    return Sensitivity(LEVELS, 0.0, {name: np.array(rows, float) for name, rows in by_name.items()})


def total(given, sizes):
    removed = sum(sizes[name] * values.sum() for name, values in given.items())
    return removed / sum(sizes[name] * len(values) for name, values in given.items())


def test_quadratic_losses_are_pruned_in_inverse_proportion_to_their_curvature():
    levels = tuple(np.linspace(0, 1, 2001)[1:])
    loss = {"a": np.array([1.0 * np.square(levels)]), "b": np.array([3.0 * np.square(levels)])}
    given = budget(Sensitivity(levels, 0.0, loss), {"a": 10, "b": 10}, 0.5)
    # 2 x 1 s_a = 2 x 3 s_b, and s_a + s_b = 1.
    np.testing.assert_allclose([given["a"][0], given["b"][0]], [0.75, 0.25], atol=1e-3)


def test_it_is_the_optimum_of_the_linear_program():
    from scipy.optimize import linprog

    random = np.random.default_rng(0)
    sizes = {"a": 7, "b": 31, "c": 12}
    slopes = {name: np.sort(random.uniform(0, 1, (2, 4)), axis=1) for name in sizes}
    loss = {name: np.cumsum(0.25 * sizes[name] * each, axis=1) for name, each in slopes.items()}
    for target in (0.0, 0.1, 0.37, 0.5, 0.93, 1.0):
        given = budget(Sensitivity(LEVELS, 2.0, {n: 2.0 + y for n, y in loss.items()}), sizes, target)
        assert total(given, sizes) == pytest.approx(target)
        points = (0.0, *LEVELS)
        found = sum(
            np.interp(given[name][layer], points, (0.0, *loss[name][layer]))
            for name in sizes
            for layer in range(2)
        )
        cost = np.concatenate([(slopes[n] * sizes[n]).ravel() for n in sizes])
        weight = np.concatenate([np.full(8, sizes[n]) for n in sizes])
        best = linprog(cost, A_eq=[weight], b_eq=[target * 2 * sum(sizes.values())], bounds=(0, 0.25))
        assert found == pytest.approx(best.fun, abs=1e-9)


def test_a_bump_in_a_curve_is_passed_over():
    # 'a' is worse at 0.25 than at 0.5: all of the way to 0.5 costs 0.2, less than half of 'b'.
    given = budget(curves(a=[[0.5, 0.2, 2.0, 4.0]], b=[[0.3, 0.6, 0.9, 1.2]]), {"a": 1, "b": 1}, 0.25)
    np.testing.assert_allclose([given["a"][0], given["b"][0]], [0.5, 0.0])


def test_a_matrix_that_gains_by_pruning_is_pruned_first():
    given = budget(curves(a=[[-0.1, 0.1, 0.2, 0.9]], b=[[0.0, 0.2, 0.4, 0.9]]), {"a": 1, "b": 1}, 0.125)
    np.testing.assert_allclose([given["a"][0], given["b"][0]], [0.25, 0.0])


def test_more_than_was_measured_is_refused():
    low = Sensitivity((0.3, 0.6), 0.0, {"a": np.array([[1.0, 2.0]])})
    with pytest.raises(InputError, match=r"between 0 and 0\.6.*found 0\.7"):
        budget(low, {"a": 4}, 0.7)
