import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.models.attention import attend_buffers
from ragjax.models.cached_attention import attend_cached
from ragjax.models.key_values import KeyValues, empty_buffer, held
from ragjax.parallel.mesh import make_mesh


def given(dtype, heads=6, kv_heads=2, head=16, keys=21, queries=3, batch=2):
    keyed = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keyed[0], (batch, queries, heads, head))
    new = jax.random.normal(keyed[1], (2, batch, keys, kv_heads, head))
    empty = empty_buffer((batch, kv_heads, keys, head), dtype)
    cache = KeyValues(*(held(empty, each, jnp.int32(0)) for each in new))
    places, own = jnp.arange(keys), jnp.arange(queries) + 9
    mask = (places <= own[:, None]) & (places >= jnp.array([[[0]], [[4]]]))
    return query, cache, mask


def program(query, cache, mask):
    return jax.jit(lambda q, c, m: attend_cached(q, c, mask=m, scale=0.25)).trace(query, cache, mask)


def calls_kernel(text):
    return "ragjax_attend" in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_kernel_and_products_agree(dtype):
    query, cache, mask = given(dtype)
    lowered = program(query, cache, mask).lower()
    assert calls_kernel(lowered.as_text())
    expected = attend_buffers(query, *cache, mask=mask, scale=0.25)
    np.testing.assert_allclose(lowered.compile()(query, cache, mask), expected, atol=2e-6)


def test_one_mask_is_for_all_sequences():
    query, cache, mask = given(jnp.float32)
    expected = attend_buffers(query, *cache, mask=mask[:1], scale=0.25)
    np.testing.assert_allclose(attend_cached(query, cache, mask=mask[:1], scale=0.25), expected, atol=2e-6)


def test_a_tpu_has_no_use_for_the_kernel():
    query, cache, mask = given(jnp.float32)
    lowered = program(query, cache, mask).lower(lowering_platforms=("tpu",))
    assert not calls_kernel(lowered.as_text())


def test_other_types_have_products():
    query, cache, mask = given(jnp.float32)
    (short, half), (_, small) = given(jnp.bfloat16)[:2], given(jnp.int8)[:2]
    mixed = (half, cache._replace(value=half.value), cache._replace(value=small.value))
    for held_so in mixed:
        assert not calls_kernel(program(query, held_so, mask).lower().as_text())
        expected = attend_buffers(query, *held_so, mask=mask, scale=0.25)
        np.testing.assert_allclose(attend_cached(query, held_so, mask=mask, scale=0.25), expected, atol=1e-6)
    assert not calls_kernel(program(short.astype(jnp.bfloat16), half, mask).lower().as_text())
    assert not calls_kernel(program(short.astype(jnp.bfloat16), cache, mask).lower().as_text())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_its_derivative_is_that_of_the_products(dtype):
    query, cache, mask = given(dtype)

    def total(attention):
        return jax.grad(lambda q, s: jnp.sin(attention(q, s)).sum(), (0, 1))(query, jnp.float32(0.25))

    found = total(lambda q, s: attend_cached(q, cache, mask=mask, scale=s))
    expected = total(lambda q, s: attend_buffers(q, *cache, mask=mask, scale=s))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


def test_a_mesh_has_products():
    query, cache, mask = given(jnp.float32)
    with jax.set_mesh(make_mesh(Mesh(tensor=2), devices=jax.devices()[:2])):
        assert not calls_kernel(program(query, cache, mask).lower().as_text())
    with jax.set_mesh(make_mesh(Mesh(tensor=1), devices=jax.devices()[:1])):
        assert calls_kernel(program(query, cache, mask).lower().as_text())
