import jax
import numpy as np
import pytest

from ragjax.kernels import norm as module
from ragjax.kernels.machine import Vectors, vectors
from ragjax.kernels.norm import RowNorm, norms_serve

EPSILON = 0.01
pytestmark = pytest.mark.skipif(not norms_serve(1, 64), reason="needs llvmlite")


def norm(x, scale, bias, epsilon=EPSILON):
    return module.norm(x, RowNorm(scale, bias, epsilon))


def some(rows, width, centred):
    """Rows far from zero, a scale, and a bias where the mean is taken off."""
    rng = np.random.default_rng(width)
    x = (3 * rng.standard_normal((rows, width)) + 2).astype(np.float32)
    scale, bias = rng.standard_normal((2, width)).astype(np.float32)
    return x, scale, bias if centred else None


def expected(x, scale, bias):
    """In plain NumPy and float64."""
    x = x.astype(np.float64)
    if bias is not None:
        x = x - x.mean(1, keepdims=True)
    normal = x / np.sqrt(np.square(x).mean(1, keepdims=True) + EPSILON) * scale
    return normal if bias is None else normal + bias


def check(given):
    np.testing.assert_allclose(norm(*given), expected(*given), atol=2e-6)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [(1, 16), (3, 64), (8, 448), (32, 768)])
def test_norms_are_numpys_in_float64(size, centred):
    check(some(*size, centred))


@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(8, 16), Vectors(16, 32)])
@pytest.mark.parametrize("centred", [True, False])
def test_vectors_of_other_processors_make_the_same(kind, centred, monkeypatch):
    if kind.lanes > vectors().lanes:
        pytest.skip("this processor has no such vectors")
    monkeypatch.setattr(module, "vectors", lambda: kind)
    check(some(5, 80, centred))


@pytest.mark.parametrize("centred", [True, False])
def test_a_row_does_not_depend_on_the_others(centred):
    x, *parts = some(7, 96, centred)
    together = norm(x, *parts)
    x[3] = np.nan
    np.testing.assert_array_equal(np.delete(norm(x, *parts), 3, 0), np.delete(together, 3, 0))
    for row in (0, 6):
        np.testing.assert_array_equal(norm(x[row : row + 1], *parts)[0], together[row])


def test_equal_features_become_the_bias():
    x, bias = np.full((2, 16), 7, np.float32), np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(norm(x, np.ones(16, np.float32), bias), [bias, bias])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("centred", [True, False])
def test_what_is_no_number_shows_as_it_does_in_numpy(value, centred):
    x, *parts = some(3, 64, centred)
    x[1, 17] = value
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(norm(x, *parts), expected(x, *parts), atol=2e-6)


def test_a_batch_is_mapped_over():
    x, *parts = some(6, 64, True)
    mapped = jax.vmap(lambda x: norm(x, *parts))(x.reshape(3, 2, 64))
    np.testing.assert_array_equal(mapped.reshape(6, 64), norm(x, *parts))


def test_machine_code_is_given_nothing_it_would_misread():
    x, scale, bias = some(2, 64, True)
    for other in (
        (x[:, :60], scale[:60], bias[:60]),
        (x, scale[:32], bias),
        (x, scale, bias[:32]),
        (x.astype(np.float16), scale, bias),
        (x, scale.astype(np.float64), bias),
        (x, scale, bias.astype(np.int32)),
        (np.zeros((513, 64), np.float32), scale, bias),
        (x[:0], scale, bias),
    ):
        with pytest.raises(AssertionError):
            norm(*other)


def test_sizes_that_are_not_known_yet_are_not_for_the_kernel():
    [rows] = jax.export.symbolic_shape("rows")
    assert not norms_serve(rows, 64)
    assert not norms_serve(1, 64 * rows)


def test_few_rows_alone_are_for_the_kernel():
    assert norms_serve(512, 64)
    assert not norms_serve(513, 64)
    assert not norms_serve(0, 64)
    assert not norms_serve(1, 0)
    assert not norms_serve(1, 72)
