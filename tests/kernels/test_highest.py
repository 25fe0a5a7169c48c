import jax
import numpy as np
import pytest

from ragjax.kernels import highest
from ragjax.kernels.highest import first_highest, highest_serves
from ragjax.kernels.machine import Vectors, vectors

SIZES = [16, 17, 31, 32, 33, 100, 257, 50_257]


def values(rows, columns):
    """Of few different ones, so that many a row has its highest more than once."""
    return np.random.default_rng(columns).integers(-3, 4, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("columns", SIZES)
def test_the_first_of_the_highest(rows, columns):
    given = values(rows, columns)
    found = jax.jit(first_highest)(given)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, given.argmax(1))


@pytest.mark.parametrize("columns", SIZES)
def test_the_highest_may_stand_anywhere(columns):
    places = np.unique(np.linspace(0, columns - 1, 64).astype(int))
    given = np.full((len(places), columns), -np.inf, np.float32)
    given[np.arange(len(places)), places] = np.linspace(-1e30, 1e30, len(places))
    np.testing.assert_array_equal(first_highest(given), places)


def test_nothing_is_as_high_as_minus_infinity():
    given = np.full((3, 40), -np.inf, np.float32)
    given[1], given[2, 7] = np.nan, np.inf
    np.testing.assert_array_equal(first_highest(given), [0, 0, 7])
    given = values(2, 40)
    given[0, 3], given[1, 39] = np.nan, np.nan
    np.testing.assert_array_equal(first_highest(given), np.nanargmax(given, 1))


@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(8, 16)])
def test_other_processors_vectors(kind, monkeypatch):
    monkeypatch.setattr(highest, "vectors", lambda: kind)
    for columns in (8, 9, 50, 1000):
        given = values(3, columns)
        np.testing.assert_array_equal(first_highest(given), given.argmax(1))


def test_threads_that_share_many_rows_leave_out_none():
    given = values(64, 5000)

    @jax.jit
    def often(given):
        def turn(i, wrong):
            turned = jax.numpy.roll(given, i, 0)
            return wrong + (first_highest(turned) != jax.numpy.roll(expected, i)).sum()

        return jax.lax.fori_loop(0, 500, turn, 0)

    expected = given.argmax(1)
    assert often(given) == 0


def test_a_batch_is_mapped_over_and_no_row_is_no_call():
    given = values(6, 40)
    np.testing.assert_array_equal(
        jax.vmap(first_highest)(given.reshape(3, 2, 40)).reshape(-1), given.argmax(1)
    )
    assert first_highest(given[:0]).shape == (0,)


def test_machine_code_is_given_nothing_it_would_misread():
    lanes = vectors().lanes
    assert highest_serves(lanes)
    assert not highest_serves(lanes - 1)
    assert not highest_serves(2**31)
    for other in (values(2, lanes - 1), values(2, 64).astype(np.float16), values(2, 64).astype(np.int32)):
        with pytest.raises(AssertionError):
            first_highest(other)
