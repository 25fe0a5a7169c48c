import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels.machine import vectors
from ragjax.kernels.panels_text import panel_width
from ragjax.models.panels import panel_kernel, panel_table
from ragjax.models.stand_ins import Kernel, Table, is_stand_in


@pytest.fixture
def kernel():
    kernel = np.random.default_rng(0).standard_normal((24, 70)).astype(np.float32)
    return np.where(np.abs(kernel) < 0.5, 0, kernel).astype(np.float32)


def test_a_kernel_is_what_it_stands_for(kernel):
    held = panel_kernel(kernel)
    assert is_stand_in(held)
    assert isinstance(held, Kernel)
    assert not isinstance(held, Table)
    assert (held.shape, held.size) == (kernel.shape, kernel.size)
    np.testing.assert_array_equal(held.whole(), kernel)
    np.testing.assert_array_equal(held.nonzero(), kernel != 0)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_kernel_multiplies_inputs_of_any_axes(kernel, lead, dtype):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((*lead, 24)), dtype)
    found = panel_kernel(kernel).multiply(x)
    assert (found.shape, found.dtype) == ((*lead, 70), jnp.float32)
    np.testing.assert_allclose(found, x.astype(jnp.float32) @ kernel, atol=1e-5)


def test_kernels_stand_beside_each_other_where_they_fill_up_their_panels():
    width, rng = panel_width(vectors()), np.random.default_rng(0)
    kernels = [rng.standard_normal((24, size)).astype(np.float32) for size in (width, 3 * width, 2 * width)]
    first, *others = map(panel_kernel, kernels)
    together = first.beside(others)
    assert together.shape == (24, 6 * width)
    np.testing.assert_array_equal(together.whole(), np.concatenate(kernels, axis=1))
    x = rng.standard_normal((5, 24)).astype(np.float32)
    each = [held.multiply(x) for held in (first, *others)]
    np.testing.assert_array_equal(together.multiply(x), np.concatenate(each, axis=1))
    assert first.beside([panel_kernel(kernels[1][:, :-1])]) is None


def test_a_table_is_what_it_stands_for(kernel):
    table = kernel.T
    held = panel_table(table)
    assert isinstance(held, Table)
    assert not isinstance(held, Kernel)
    assert (held.shape, held.size) == (table.shape, table.size)
    np.testing.assert_array_equal(held.whole(), table)
    np.testing.assert_array_equal(held.nonzero(), table != 0)
    tokens = np.array([[0, 69, 31], [32, 33, 5]])
    np.testing.assert_array_equal(held.rows(tokens), table[tokens])
    hidden = np.random.default_rng(1).standard_normal((2, 3, 24)).astype(np.float32)
    np.testing.assert_allclose(held.scores(hidden), hidden @ table.T, atol=1e-5)
