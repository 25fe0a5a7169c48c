from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import block_parts, blocks
from ragjax.kernels.blocks import blocks_serve, multiply_blocks
from ragjax.kernels.machine import Vectors

SIDES = list(product((False, True), repeat=2))
SHAPES = [(1, 16, 32), (7, 16, 32), (8, 48, 96), (133, 800, 352), (2050, 48, 128), (70, 9600, 32)]
"""Rows, inputs, outputs: less than a tile and more, one block of inputs and several, one piece and more."""


def factors(rows, inputs, outputs):
    rng = np.random.default_rng(rows)
    return (
        rng.standard_normal((rows, inputs)).astype(np.float32),
        rng.standard_normal((inputs, outputs)).astype(np.float32),
    )


def given(x, y, x_transposed, y_transposed):
    """The factors as they are handed over, and how."""
    x, y = (
        np.ascontiguousarray(f.T) if turned else f for f, turned in ((x, x_transposed), (y, y_transposed))
    )
    return (x, y), {"x_transposed": x_transposed, "y_transposed": y_transposed}


def close(found, x, y, onto=0.0):
    """Whether each value is as near to a product in float64 as a sum in float32 must be."""
    exact = x.astype(np.float64) @ y.astype(np.float64) + onto
    bound = (x.shape[1] + 2) * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(y) + np.abs(onto))
    return (np.abs(np.asarray(found) - exact) <= bound).all()


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_that_of_numpy_in_float64(shape, sides):
    x, y = factors(*shape)
    handed, how = given(x, y, *sides)
    found = jax.jit(lambda x, y: multiply_blocks(x, y, **how))(*handed)
    assert found.shape == (shape[0], shape[2])
    assert close(found, x, y)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_added_and_what_was_there_is_kept(shape, sides):
    x, y = factors(*shape)
    handed, how = given(x, y, *sides)
    sums = np.random.default_rng(9).standard_normal((shape[0], shape[2])).astype(np.float32)
    before = jnp.asarray(sums)
    found = jax.jit(lambda x, y, sums: multiply_blocks(x, y, onto=sums, **how))(*handed, before)
    assert close(found, x, y, sums)
    np.testing.assert_array_equal(before, sums)


def test_sums_of_a_loop_are_added_to_in_place():
    x, y = factors(64, 128, 64)

    def often(x, y, sums):
        return jax.lax.fori_loop(0, 5, lambda _, sums: multiply_blocks(x, y, onto=sums), sums)

    program = jax.jit(often, donate_argnums=2).lower(x, y, jnp.ones((64, 64))).compile()
    assert program.memory_analysis().temp_size_in_bytes < 64 * 64 * 4
    found = program(x, y, jnp.ones((64, 64)))
    np.testing.assert_allclose(found, 1 + 5 * (x @ y), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("rows", "outputs"), [(1280, 1280), (900, 1280), (1280, 640), (37, 96)])
def test_upper_half_alone_is_added_where_asked(rows, outputs, sides):
    x, y = factors(rows, 800, outputs)
    handed, how = given(x, y, *sides)
    sums = np.random.default_rng(9).standard_normal((rows, outputs)).astype(np.float32)
    found = np.asarray(multiply_blocks(*handed, onto=jnp.asarray(sums), upper=True, **how))
    below = np.arange(rows)[:, None] - np.arange(outputs)
    wanted = np.where(below <= 0, found, multiply_blocks(*handed, onto=jnp.asarray(sums), **how))
    assert close(wanted, x, y, sums)
    np.testing.assert_array_equal(found[below >= 128], sums[below >= 128])


@pytest.mark.parametrize("sides", SIDES)
def test_a_row_depends_neither_on_the_others_nor_on_how_rows_are_shared_out(sides):
    x, y = factors(300, 1600, 64)

    def multiplied(x):
        handed, how = given(x, y, *sides)
        return np.asarray(multiply_blocks(*handed, **how))

    together = multiplied(x)
    for row in (0, 7, 8, 299):
        np.testing.assert_array_equal(multiplied(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(4, 32), Vectors(8, 16)])
def test_other_processors_vectors(kind, sides, monkeypatch):
    monkeypatch.setattr(blocks, "vectors", lambda: kind)
    for shape in ((3, 8, 16), (5, 800, 96), (137, 40, 48)):
        x, y = factors(*shape)
        handed, how = given(x, y, *sides)
        assert close(multiply_blocks(*handed, **how), x, y)
        assert close(multiply_blocks(*handed, onto=jnp.ones((shape[0], shape[2])), **how), x, y, 1.0)


@pytest.mark.parametrize("sides", SIDES)
def test_threads_that_share_many_products_leave_out_none(sides):
    x, y = factors(200, 48, 320)
    (x, y), how = given(x, y, *sides)

    @jax.jit
    def often(x):
        # Each product overwrites what the one before has written.
        def turn(i, worst):
            found = multiply_blocks(x * (i + 1), y, **how)
            return jnp.maximum(worst, jnp.abs(found / (i + 1) - expected).max())

        return jax.lax.fori_loop(0, 1000, turn, jnp.float32(0))

    expected = multiply_blocks(x, y, **how)
    assert often(x) < 1e-5 * float(jnp.abs(expected).max())


def test_what_is_no_number_stays_where_it_belongs():
    x, y = factors(40, 64, 96)
    x[3, 5], x[20, 0] = np.nan, np.inf
    for sides in SIDES:
        handed, how = given(x, y, *sides)
        found = np.asarray(multiply_blocks(*handed, **how))
        assert np.isnan(found[3]).all()
        assert (np.abs(found[20]) == np.inf).all()
        rest = np.delete(np.arange(40), [3, 20])
        assert close(found[rest], x[rest], y)


def test_a_batch_is_mapped_over():
    x, y = factors(6, 16, 32)
    mapped = jax.vmap(multiply_blocks, (0, None))(x.reshape(3, 2, 16), y)
    np.testing.assert_array_equal(mapped.reshape(6, -1), multiply_blocks(x, y))


@pytest.mark.parametrize("sides", SIDES)
def test_rows_keep_their_axes(sides):
    x, y = factors(36, 64, 96)
    handed, how = given(x, y, *sides)
    flat = multiply_blocks(*handed, **how)
    for axes in ((3, 12), (2, 3, 6), (36, 1)):
        by_axes = handed[0].reshape((64, *axes) if sides[0] else (*axes, 64))
        found = multiply_blocks(by_axes, handed[1], **how)
        assert found.shape == (*axes, 96)
        np.testing.assert_array_equal(found.reshape(36, 96), flat)
        found = multiply_blocks(by_axes, handed[1], onto=jnp.ones((*axes, 96)), **how)
        assert close(found.reshape(36, 96), x, y, 1.0)


def test_a_function_of_a_product_takes_its_place():
    x, up, down = jnp.ones((2, 64, 32)), jnp.ones((32, 256)), jnp.ones((256, 32))

    def mlp(x, up, down):
        return multiply_blocks(jax.nn.gelu(multiply_blocks(x, up)), down)

    program = jax.jit(mlp).lower(x, up, down).compile()
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * 4 * 2 * 64 * 256


def test_nothing_times_something_is_nothing():
    assert multiply_blocks(jnp.ones((0, 16)), jnp.ones((16, 32))).shape == (0, 32)
    np.testing.assert_array_equal(multiply_blocks(jnp.ones((2, 0)), jnp.ones((0, 32))), np.zeros((2, 32)))
    sums = jnp.ones((2, 32))
    np.testing.assert_array_equal(multiply_blocks(jnp.ones((2, 0)), jnp.ones((0, 32)), onto=sums), sums)


def test_machine_code_is_given_nothing_it_would_misread():
    x, y = factors(8, 64, 64)
    multiply_blocks(x, y)
    wrong = [
        ((x[:, :48], y), {}),
        ((x[:, :60], np.ascontiguousarray(y[:60].T)), {"y_transposed": True}),
        ((x, y[:, :48]), {}),
        ((x.astype(np.float16), y), {}),
        ((x, y.astype(np.float16)), {}),
        ((x, y), {"onto": np.zeros((8, 32), np.float32)}),
        ((x, y), {"onto": np.zeros((8, 64), np.float16)}),
        ((x, y), {"x_transposed": True}),
        ((x.reshape(2, 4, 64), y), {"onto": np.zeros((2, 4, 64), np.float32), "upper": True}),
    ]
    for handed, how in wrong:
        with pytest.raises(AssertionError):
            multiply_blocks(*handed, **how)


@pytest.mark.parametrize("inputs", [1, 5, 125, 801])
@pytest.mark.parametrize("x_transposed", [True, False])
def test_inputs_may_be_any_number_where_y_is_as_it_is(inputs, x_transposed):
    x, y = factors(37, inputs, 96)
    handed, how = given(x, y, x_transposed, False)
    assert close(multiply_blocks(*handed, **how), x, y)
    assert close(multiply_blocks(*handed, onto=jnp.ones((37, 96)), **how), x, y, 1.0)


def test_sums_may_be_a_factor_too():
    x, y = factors(64, 64, 64)
    assert close(jax.jit(lambda x, y: multiply_blocks(x, y, onto=x))(x, y), x, y, x)
    assert close(jax.jit(lambda x, y: multiply_blocks(x, y, onto=y))(x, y), x, y, y)

    def often(x, y):
        return jax.lax.fori_loop(0, 3, lambda _, sums: multiply_blocks(sums, y / 8, onto=sums), x)

    expected = x.astype(np.float64)
    for _ in range(3):
        expected = expected + expected @ (y / 8).astype(np.float64)
    np.testing.assert_allclose(jax.jit(often)(x, y), expected, rtol=1e-4, atol=1e-4)


def test_sums_of_a_batch_are_mapped_over():
    x, y = factors(6, 16, 32)
    sums = np.random.default_rng(1).standard_normal((3, 2, 32)).astype(np.float32)
    mapped = jax.vmap(lambda x, sums: multiply_blocks(x, y, onto=sums))(x.reshape(3, 2, 16), sums)
    np.testing.assert_allclose(mapped, sums + (x @ y).reshape(3, 2, 32), rtol=1e-5, atol=1e-5)


def test_they_serve_large_products_of_whole_panels(monkeypatch):
    monkeypatch.setattr(blocks, "vectors", lambda: Vectors(16, 32))
    assert blocks_serve(1024, 768, 768)
    assert blocks_serve(32, 256, 256)
    assert not blocks_serve(31, 256, 256)
    assert blocks_serve(16, 768, 3072)
    assert not blocks_serve(15, 768, 3072)
    assert not blocks_serve(1024, 768, 784)
    assert blocks_serve(1024, 775, 768)
    assert blocks_serve(1024, 784, 768, y_transposed=True)
    assert not blocks_serve(1024, 776, 768, y_transposed=True)
    monkeypatch.setattr(blocks, "kernels_serve", lambda: False)
    assert not blocks_serve(1024, 768, 768)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_as_many_vectors_as_they_have_lanes_are_turned(lanes):
    """The text says which lanes of two vectors become one: it is done here in NumPy."""
    text, names = block_parts._turned([f"%value.{lane}" for lane in range(lanes)])
    values = {f"%value.{lane}": lanes * lane + np.arange(lanes) for lane in range(lanes)}
    for line in text:
        to, rest = line.strip().split(" = shufflevector ")
        first, second = (part.split("float> ")[1].split(",")[0] for part in rest.split(", <")[0:2])
        chosen = [int(part.split()[-1]) for part in rest.rsplit("<", 1)[1].rstrip(">").split(",")]
        values[to] = np.concatenate([values[first], values[second]])[chosen]
    for lane, name in enumerate(names):
        np.testing.assert_array_equal(values[name], lanes * np.arange(lanes) + lane)
