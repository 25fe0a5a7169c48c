"""A cache in 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.generation import continuations
from ragjax.models.attention import attend_buffers
from ragjax.models.key_values import empty_buffer, held

DRAWN = np.random.default_rng(0)


def test_each_position_of_each_head_has_a_scale_of_its_own():
    new = DRAWN.normal(size=(2, 3, 2, 8)).astype(np.float32) * np.array([1e-4, 10])[:, None]
    buffer = held(empty_buffer((2, 2, 6, 8), jnp.int8), jnp.asarray(new, jnp.float32), jnp.int32(2))
    assert buffer.shape == (2, 2, 6, 8)
    back = np.asarray(buffer.codes * buffer.scale).swapaxes(1, 2)
    step = np.abs(new).max(-1, keepdims=True) / 127
    assert (np.abs(back[:, 2:5] - new) <= 0.501 * step).all()
    assert not back[:, :2].any()
    assert not back[:, 5:].any()


def test_attention_over_integers_is_that_over_the_floats_they_stand_for():
    query = jnp.asarray(DRAWN.normal(size=(2, 3, 4, 8)), jnp.float32)
    key, value = (
        held(
            empty_buffer((2, 2, 5, 8), jnp.int8),
            jnp.asarray(DRAWN.normal(size=(2, 5, 2, 8)), jnp.float32),
            jnp.int32(0),
        )
        for _ in range(2)
    )
    mask = jnp.ones((1, 3, 5), bool)
    floats = (each.codes * each.scale for each in (key, value))
    np.testing.assert_allclose(
        attend_buffers(query, key, value, mask=mask, scale=0.3),
        attend_buffers(query, *floats, mask=mask, scale=0.3),
        atol=1e-6,
    )


def test_log_probs_move_by_less_than_a_hundredth_and_the_cache_takes_a_third(tiny_config, tiny_model):
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
    wide, short = (
        continuations(tiny_model, prompts, max_new_tokens=12, log_probs=0, cache_dtype=dtype)
        for dtype in ("float32", "int8")
    )
    for exact, rounded in zip(wide, short, strict=True):
        assert exact.tokens.tolist() == rounded.tokens.tolist()
        moved = np.abs(exact.log_probs - rounded.log_probs)
        assert 0 < moved.max() < 0.01
    shape = (1, tiny_config.key_value_heads, 32, tiny_config.head_width)
    small, large = (
        sum(x.nbytes for x in jax.tree.leaves(empty_buffer(shape, dtype)))
        for dtype in (jnp.int8, jnp.float32)
    )
    head = tiny_config.head_width
    assert small / large == pytest.approx((head + 4) / (4 * head))
