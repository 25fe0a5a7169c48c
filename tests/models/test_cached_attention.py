import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.models.attention import attend_buffers
from ragjax.models.cached_attention import attend_cached, hold_and_attend
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


def held_program(query, key, value, cache, mask, at):
    return jax.jit(lambda *given: hold_and_attend(*given[:4], given[5], mask=given[4], scale=0.25)).trace(
        query, key, value, cache, mask, at
    )


def given_new(dtype, queries=3):
    query, cache, mask = given(dtype, queries=queries)
    key, value = jax.random.normal(jax.random.key(7), (2, 2, queries, 2, 16))
    return query, key, value, cache, mask


@pytest.mark.parametrize("at", [9, [9, 2]])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8, jnp.bfloat16])
def test_new_keys_are_held_and_seen(dtype, at):
    *new, cache, mask = given_new(dtype)
    at = jnp.array(at, jnp.int32)
    lowered = held_program(*new, cache, mask, at).lower()
    assert ("ragjax_attend_f32_new" in lowered.as_text()) is (dtype == jnp.float32)
    found, kept = lowered.compile()(*new, cache, mask, at)
    expected = KeyValues(*(held(*pair, at) for pair in zip(cache, new[1:], strict=True)))
    jax.tree.map(np.testing.assert_array_equal, kept, expected)
    np.testing.assert_allclose(found, attend_cached(new[0], expected, mask=mask, scale=0.25), atol=2e-6)


def test_beside_a_prompt_xla_puts_keys_into_buffers():
    *new, cache, mask = given_new(jnp.float32, queries=17)
    text = held_program(*new, cache, mask, jnp.int32(2)).lower().as_text()
    assert calls_kernel(text)
    assert "ragjax_attend_f32_new" not in text


def test_the_derivative_of_what_is_held_is_that_of_xlas_programs():
    query, key, value, cache, mask = given_new(jnp.float32)

    def total(key, value, cache):
        out, kept = hold_and_attend(query, key, value, cache, jnp.int32(9), mask=mask, scale=0.25)
        return jnp.sin(out).sum() + jnp.sin(kept.key).sum()

    def plainly(key, value, cache):
        kept = KeyValues(held(cache.key, key, jnp.int32(9)), held(cache.value, value, jnp.int32(9)))
        out = attend_buffers(query, *kept, mask=mask, scale=0.25)
        return jnp.sin(out).sum() + jnp.sin(kept.key).sum()

    found, expected = (jax.grad(each, (0, 1, 2))(key, value, cache) for each in (total, plainly))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)


def test_a_mesh_and_a_tpu_put_keys_by_xlas_programs():
    *new, cache, mask = given_new(jnp.float32)
    traced = held_program(*new, cache, mask, jnp.int32(9))
    assert not calls_kernel(traced.lower(lowering_platforms=("tpu",)).as_text())
    with jax.set_mesh(make_mesh(Mesh(tensor=2), devices=jax.devices()[:2])):
        assert not calls_kernel(held_program(*new, cache, mask, jnp.int32(9)).lower().as_text())
