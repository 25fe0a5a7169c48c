import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.matmul import linear, matmul


def factors(dtype, rows=(3, 5), n=19, m=7):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*rows, n), dtype)
    return x, jax.random.normal(keys[1], (n, m)), jax.random.normal(keys[2], (*rows, m), dtype)


@pytest.mark.parametrize("rows", [(4,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_product_and_both_gradients_equal_numpys_in_float64(rows, dtype, bound):
    x, kernel, gradient = factors(dtype, rows)
    out, pull = jax.vjp(jax.jit(matmul), x, kernel)
    dx, dkernel = jax.jit(pull)(gradient)
    # The kernel takes part in the type of x.
    x64, k64, g64 = (np.asarray(a.astype(dtype), np.float64) for a in (x, kernel, gradient))
    flat = x64.reshape(-1, 19), g64.reshape(-1, 7)
    for found, expected in ((out, x64 @ k64), (dx, g64 @ k64.T), (dkernel, flat[0].T @ flat[1])):
        assert np.abs(np.asarray(found, np.float64) - expected).max() < bound * np.abs(expected).max()
    assert (out.dtype, dx.dtype, dkernel.dtype) == (dtype, dtype, jnp.float32)


def test_bfloat16_products_are_summed_in_float32(types_of_products):
    x, kernel, gradient = factors(jnp.bfloat16)

    def value_and_gradients(x, kernel, gradient):
        out, pull = jax.vjp(matmul, x, kernel)
        return out, pull(gradient)

    asked = types_of_products(value_and_gradients, x, kernel, gradient)
    assert asked == [("bf16", "bf16", "f32")] * 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_activated_multiplied_and_added_is_rounded_once(dtype):
    x, kernel, gradient = factors(dtype, rows=(40,))
    bias = 5 * jax.random.normal(jax.random.key(9), (7,))
    out, pull = jax.vjp(jax.jit(lambda *a: linear(*a, jax.nn.relu)), x, kernel, bias)
    dx, dkernel, dbias = pull(gradient)
    x64, k64, g64 = (np.asarray(a.astype(dtype), np.float64) for a in (x, kernel, gradient))
    active = np.maximum(x64, 0)
    expected = active @ k64 + np.asarray(bias, np.float64)
    half_a_unit = jnp.finfo(dtype).eps / 2 * np.abs(expected)
    assert (np.abs(np.asarray(out, np.float64) - expected) < 1.01 * half_a_unit + 1e-5).all()
    np.testing.assert_allclose(dkernel, active.T @ g64, atol=1e-4)
    np.testing.assert_allclose(dbias, g64.sum(0), atol=1e-4)
    np.testing.assert_allclose(np.asarray(dx, np.float64), (g64 @ k64.T) * (x64 > 0), rtol=1e-2, atol=1e-5)
    assert (out.dtype, dx.dtype, dkernel.dtype, dbias.dtype) == (dtype, dtype, jnp.float32, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_may_be_mapped_and_scanned(dtype):
    x, kernel, _ = factors(dtype, rows=(6, 4))
    kernels = jnp.stack([kernel, 2 * kernel])
    grad = jax.grad(lambda x, k: matmul(x, k).astype(jnp.float32).sum(), argnums=1)
    mapped = jax.vmap(partial(grad, x))(kernels)
    scanned = jax.lax.scan(lambda c, k: (c, grad(x, k)), None, kernels)[1]
    np.testing.assert_allclose(mapped, jnp.stack([grad(x, k) for k in kernels]), rtol=1e-5)
    np.testing.assert_allclose(scanned, mapped, rtol=1e-5)


def test_16_bit_products_on_cpu_read_both_factors_row_by_row():
    """Else XLA leaves its fast kernel: a factor's inner axis must be the one its layout ends with."""
    x, kernel, gradient = factors(jnp.bfloat16, rows=(64,), n=256, m=128)
    pulled = jax.jit(lambda x, k, g: jax.vjp(matmul, x, k)[1](g))
    text = pulled.lower(x, kernel, gradient).compile().as_text()
    dots = re.findall(r" dot\(.*?lhs_contracting_dims=\{(\d)\}, rhs_contracting_dims=\{(\d)\}", text)
    assert dots == [("1", "0")] * 2


def test_a_split_batch_is_not_gathered():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel, gradient = factors(jnp.bfloat16, rows=(16, 4))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, gradient = jax.device_put((x, gradient), split)
    pulled = jax.jit(lambda x, k, g: jax.vjp(matmul, x, k)[1](g))
    text = pulled.lower(x, kernel, gradient).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
