import ml_dtypes
import numpy as np
import pytest

from ragjax.interchange import sweep
from ragjax.interchange.sweep import copy, is_finite

TYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(autouse=True, params=[1, 1000, 1 << 22], ids=["row by row", "some rows", "whole"])
def _piece(request, monkeypatch):
    monkeypatch.setattr(sweep, "_PIECE", request.param)


SOURCES = {
    "vector": lambda x: x[0],
    "rows": lambda x: x,
    "transposed": lambda x: x.T,
    "every second column": lambda x: x[:, ::2],
    "part, transposed": lambda x: x[3:, 5:22].T,
    "transposed, cut": lambda x: x.T[2:19, 1:],
    "three axes": lambda x: x.reshape(-1, 2, x.shape[1]).swapaxes(1, 2),
    "one row": lambda x: x[:1].T,
}


@pytest.mark.parametrize("view", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_every_value_is_copied_however_it_lies_and_of_whatever_type(view, stored, wanted):
    values = np.random.default_rng(0).normal(size=(38, 51)).astype(stored)
    source = view(values)
    around = np.full([n + 2 for n in source.shape], 7, wanted)
    target = around[tuple(slice(1, -1) for _ in source.shape)]
    copy(target, source)
    np.testing.assert_array_equal(target, source.astype(wanted))
    target[...] = 7
    assert (around == 7).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (17, 30), (37, 50)])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype, bad, place):
    values = np.ones((38, 51), dtype)
    assert is_finite(values)
    values[place] = bad
    assert not is_finite(values)
    assert not is_finite(values[place[0]])


def test_infinities_that_cancel_are_found_and_large_sums_are_not_taken_for_one():
    assert not is_finite(np.float32([np.inf, -np.inf]))
    assert is_finite(np.full((300, 4), 3e38, np.float32))
    assert is_finite(np.full((300, 4), 65504, np.float16))


def test_nothing_at_all_is_finite():
    assert is_finite(np.zeros((0, 3), np.float32))
