"""X'X against float64, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.sparsity.calibrated.gram import gram, whole, with_gram


@pytest.mark.parametrize("shape", [(3, 5, 8), (64, 33), (40, 1026), (2, 20, 1280)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_product_summed_over_all_tokens_in_float32(shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(1, 1, shape), dtype)
    rows = np.asarray(x, np.float64).reshape(-1, shape[-1])
    found = jax.jit(gram)(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-5, atol=1e-4)


def test_wide_ones_are_symmetric_to_the_bit():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(300, 2048)), jnp.float32)
    found = np.asarray(gram(x))
    np.testing.assert_array_equal(found, found.T)


@pytest.fixture
def without_kernels(monkeypatch):
    """As where there are none."""
    monkeypatch.setattr("ragjax.kernels.blocks.kernels_serve", lambda: False)


def test_without_kernels_it_is_the_same(without_kernels):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(300, 1536)), jnp.float32)
    found, rows = np.asarray(jax.jit(lambda x: gram(x))(x)), np.asarray(x, np.float64)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-5, atol=1e-4)


def test_wide_ones_cost_fewer_operations_than_the_plain_product(without_kernels):
    x = jax.ShapeDtypeStruct((1024, 2048), jnp.float32)
    cost = jax.jit(lambda x: gram(x)).lower(x).compile().cost_analysis()["flops"]
    assert cost < 0.66 * 2 * 1024 * 2048**2


def test_sums_over_several_texts_are_made_whole_at_the_end():
    texts = np.random.default_rng(3).normal(size=(3, 50, 1536)).astype(np.float32)
    total = jnp.zeros((1536, 1536))
    for x in texts:
        total = jax.jit(with_gram, donate_argnums=0)(total, x)
    rows = texts.reshape(-1, 1536).astype(np.float64)
    above = np.triu_indices(1536)
    np.testing.assert_allclose(np.asarray(total)[above], (rows.T @ rows)[above], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(jax.jit(whole)(total), rows.T @ rows, rtol=1e-5, atol=1e-4)


def test_sums_grow_where_they_lie():
    total, x = jax.ShapeDtypeStruct((2048, 2048), jnp.float32), jax.ShapeDtypeStruct((64, 2048), jnp.float32)
    memory = jax.jit(with_gram, donate_argnums=0).lower(total, x).compile().memory_analysis()
    assert memory.alias_size_in_bytes == 4 * 2048**2
    assert memory.temp_size_in_bytes < 4 * 2048**2


def test_tokens_on_eight_devices_are_summed_over_all():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(16, 6, 1040)), jnp.float32)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(jax.jit(gram)(split), gram(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("platform", "products"), [("cpu", 7), ("tpu", 1), ("cuda", 1)])
def test_only_cpu_halves_it_and_every_product_is_one_of_full_float32(platform, products, without_kernels):
    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32)
    text = jax.jit(lambda x: gram(x)).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("dot_general ") == text.count("precision = [HIGHEST, HIGHEST]") == products


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_for_other_platforms_no_kernel_stands_in_a_program(platform):
    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32)
    text = jax.jit(lambda x: gram(x)).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert "ragjax_blocks" not in text
    assert text.count("dot_general ") == text.count("precision = [HIGHEST, HIGHEST]") == 1
