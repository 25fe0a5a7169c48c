from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.matmul import matmul


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


def test_bfloat16_products_are_summed_in_float32():
    # 1 + 4096 times 2^-9: each step of a bfloat16 sum would be rounded away.
    x = jnp.concatenate([jnp.ones((1, 1)), jnp.full((1, 4096), 2.0**-9)], axis=1).astype(jnp.bfloat16)
    kernel = jnp.ones((4097, 1))
    assert matmul(x, kernel)[0, 0] == 9
    gradient = jax.grad(lambda k: matmul(x.T, k).astype(jnp.float32).sum())(jnp.ones((1, 1)))
    assert gradient[0, 0] == 9


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_may_be_mapped_and_scanned(dtype):
    x, kernel, _ = factors(dtype, rows=(6, 4))
    kernels = jnp.stack([kernel, 2 * kernel])
    grad = jax.grad(lambda x, k: matmul(x, k).astype(jnp.float32).sum(), argnums=1)
    mapped = jax.vmap(partial(grad, x))(kernels)
    scanned = jax.lax.scan(lambda c, k: (c, grad(x, k)), None, kernels)[1]
    np.testing.assert_allclose(mapped, jnp.stack([grad(x, k) for k in kernels]), rtol=1e-5)
    np.testing.assert_allclose(scanned, mapped, rtol=1e-5)
