import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.rows import rows_of


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (16,), (17,), (0,), (4, 0)])
@pytest.mark.parametrize("features", [(), (5,)])
def test_rows_are_those_of_numpy(shape, features):
    rng = np.random.default_rng(0)
    table, places = rng.standard_normal((40, *features)), rng.integers(0, 40, shape)
    found = rows_of(jnp.float32(table), jnp.int32(places))
    np.testing.assert_array_equal(found, table.astype(np.float32)[places])


def test_gradients_add_up_where_a_row_is_read_twice():
    table, places = jnp.ones((6, 3)), jnp.array([4, 1, 4])
    found = jax.grad(lambda table: (rows_of(table, places) * jnp.arange(1.0, 4)[:, None]).sum())(table)
    np.testing.assert_array_equal(found[:, 0], [0, 2, 0, 0, 4, 0])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="is of XLA's CPU backend")
def test_few_rows_are_no_work_for_several_threads():
    table = jnp.zeros((50_000, 512))

    def program(count):
        read = jax.jit(lambda table, places: rows_of(table, places) * 2)
        return read.lower(table, jnp.zeros(count, jnp.int32)).compile().as_text()

    assert "outer_dimension_partitions" not in program(8)
    assert "outer_dimension_partitions" in program(32)


def test_how_many_rows_there_are_may_not_be_known_yet():
    [rows] = jax.export.symbolic_shape("rows")
    places = jax.ShapeDtypeStruct((rows,), jnp.int32)
    made = jax.export.export(jax.jit(lambda places: rows_of(jnp.arange(6.0), places)))(places)
    np.testing.assert_array_equal(made.call(jnp.array([5, 2])), [5, 2])
