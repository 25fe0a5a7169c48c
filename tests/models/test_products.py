import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import machine
from ragjax.models.matmul import linear
from ragjax.models.products import (
    plus_weight_gradient,
    product,
    product_with_transposed,
    transposed,
    weight_gradient,
)

BLOCKS = "ragjax_blocks"
"""Begins the names of custom calls that multiply by blocks."""


def factors(dtype, rows=(3, 5), n=19, m=7):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*rows, n), dtype)
    return x, jax.random.normal(keys[1], (n, m), dtype), jax.random.normal(keys[2], (*rows, m), dtype)


def layer(x, kernel, gradient):
    out, pull = jax.vjp(lambda x, k: linear(x, k, None), x, kernel)
    return out, *pull(gradient)


@pytest.mark.parametrize("size", [{}, {"rows": (2, 64), "n": 192, "m": 96}], ids=["small", "large"])
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_each_product_is_numpys_in_float64(size, dtype, bound):
    x, y, gradient = factors(dtype, **size)
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, y.shape[1])
    sums = jax.random.normal(jax.random.key(5), y.shape)
    x64, y64, rows64, columns64, sums64 = (np.asarray(a, np.float64) for a in (x, y, rows, columns, sums))

    def plain(sums, x, gradient):
        return sums + weight_gradient(x, gradient)

    pairs = [
        (product(x, y), x64 @ y64),
        (product_with_transposed(gradient, y), np.asarray(gradient, np.float64) @ y64.T),
        (product_with_transposed(gradient, y, rewritten=False), np.asarray(gradient, np.float64) @ y64.T),
        (weight_gradient(rows, columns), rows64.T @ columns64),
        (plus_weight_gradient(sums, rows, columns, plain), sums64 + rows64.T @ columns64),
    ]
    for found, expected in pairs:
        assert found.dtype == jnp.float32
        assert np.abs(found - expected).max() < bound * np.abs(expected).max()


def test_large_float32_products_are_by_blocks():
    x, kernel, gradient = factors(jnp.float32, (2, 64), 192, 96)
    text = jax.jit(layer).lower(x, kernel, gradient).as_text()
    assert text.count(BLOCKS) == 3
    sums = jnp.zeros((192, 96))
    args = sums, x.reshape(-1, 192), gradient.reshape(-1, 96)
    added = jax.jit(lambda *given: plus_weight_gradient(*given, lambda sums, x, gradient: sums))
    assert BLOCKS in added.lower(*args).as_text()


@pytest.mark.parametrize(
    ("dtype", "rows", "n", "m"),
    [(jnp.bfloat16, 128, 192, 96), (jnp.float32, 16, 192, 96), (jnp.float32, 128, 192, 90)],
)
def test_other_products_are_xlas(dtype, rows, n, m):
    x, kernel, gradient = factors(dtype, (rows,), n, m)
    assert BLOCKS not in jax.jit(layer).lower(x, kernel, gradient).as_text()


def test_without_llvmlite_all_products_are_xlas(monkeypatch):
    monkeypatch.setattr(machine, "compiles", lambda: False)
    x, kernel, gradient = factors(jnp.float32, (128,), 192, 96)
    assert BLOCKS not in jax.jit(layer).lower(x, kernel, gradient).as_text()


def test_a_program_for_another_platform_has_plain_products():
    x, kernel, gradient = factors(jnp.float32, (128,), 192, 96)
    lowered = jax.jit(layer).trace(x, kernel, gradient).lower(lowering_platforms=("tpu",))
    assert BLOCKS not in lowered.as_text()


def test_what_a_mesh_splits_is_xlas():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel, gradient = factors(jnp.float32, (128,), 192, 96)
    expected = layer(x, kernel, gradient)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, gradient = jax.device_put((x, gradient), split)
    with jax.set_mesh(mesh):
        program = jax.jit(layer).lower(x, kernel, gradient)
        found = program.compile()(x, kernel, gradient)
    assert BLOCKS not in program.as_text()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_products_run_in_shard_map_over_one_device():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel, _ = factors(jnp.float32, (128,), 192, 96)
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        lambda x, y: product(x, y), mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec("data")
    )
    np.testing.assert_allclose(jax.jit(mapped)(x, kernel), product(x, kernel), rtol=1e-4, atol=1e-4)


def test_a_program_for_every_number_of_rows_is_xlas():
    (rows,) = jax.export.symbolic_shape("rows")
    _, kernel, _ = factors(jnp.float32, (128,), 192, 96)
    x = jax.ShapeDtypeStruct((rows, 64, 192), jnp.float32)
    gradient = jax.jit(jax.grad(lambda kernel, x: jnp.square(linear(x, kernel, None)).sum()))
    text = jax.export.export(gradient, platforms=["cpu"])(kernel, x).mlir_module()
    assert BLOCKS not in text


def test_derivatives_beyond_the_first_are_those_of_plain_products():
    x, kernel, _ = factors(jnp.float32, (128,), 192, 96)

    def second(function):
        slope = jax.grad(lambda kernel: jnp.square(function(x, kernel)).sum())
        return jax.grad(lambda kernel: jnp.square(slope(kernel)).sum())(kernel)

    found, expected = second(lambda x, k: linear(x, k, None)), second(jnp.dot)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_weight_gradients_of_shards_stay_apart():
    x, _, gradient = factors(jnp.float32, rows=(3, 5))
    np.testing.assert_allclose(
        weight_gradient(x, gradient), np.einsum("srn,srm->snm", x, gradient), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_transposed_swaps_the_last_two_axes(shape, dtype):
    x = jnp.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(jax.jit(transposed)(x), np.swapaxes(x, -1, -2))
