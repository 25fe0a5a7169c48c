"""Attention in blocks against float64 numpy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models import causal_attention
from ragjax.models.attention import attend, causal_mask, within
from ragjax.models.causal_attention import causal_attend

BATCH, SEQ, HEADS, HEAD, SCALE = 2, 11, 3, 5, 0.3


ALL_AT_ONCE = (2**23, 2**20)
PARTS = {
    "three_blocks": (4, *ALL_AT_ONCE),
    "one_block": (128, *ALL_AT_ONCE),
    "head_by_head": (4, 0, SEQ**2),
    "row_by_row": (4, 0, HEADS * SEQ**2),
}


@pytest.fixture(autouse=True, params=PARTS.values(), ids=PARTS)
def _parts(request, monkeypatch):
    """Blocks of 4, so that a short sequence has whole ones and a part; one block; few heads at a time."""
    for name, value in zip(
        ("_SMALLEST_BLOCK", "_MOST_SCORES", "_SCORES_AT_ONCE"), request.param, strict=True
    ):
        monkeypatch.setattr(causal_attention, name, value)


def order():
    return jnp.arange(SEQ)[None]


def segments():
    return jnp.asarray([[0] * 3 + [1] * 8, [0] * 6 + [1] + [2] * 4])


MASKS = {
    "causal": lambda: causal_mask(order(), order()),
    "window": lambda: within(causal_mask(order(), order()), order(), order(), 3),
    "segments": lambda: causal_mask(order(), order()) & (segments()[:, :, None] == segments()[:, None, :]),
}


def some_heads(dtype=jnp.float32):
    """Query, key, value, and the gradient of the output."""
    shape = (BATCH, SEQ, HEADS, HEAD)
    return tuple(jax.random.normal(jax.random.key(i), shape, dtype) for i in range(4))


def value_and_gradients(query, key, value, gradient, mask):
    def function(*heads):
        return causal_attend(*heads, mask=mask, scale=SCALE)

    out, pull = jax.vjp(jax.jit(function), query, key, value)
    return out, *pull(gradient)


def reference(query, key, value, gradient, mask):
    """The same in float64; a row that sees nothing has no weights."""
    query, key, value, gradient = (
        np.asarray(x, np.float64).swapaxes(1, 2) for x in (query, key, value, gradient)
    )
    scores = np.where(np.asarray(mask)[:, None], SCALE * query @ key.swapaxes(2, 3), -np.inf)
    weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e9))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    dweights = gradient @ value.swapaxes(2, 3)
    dscores = SCALE * weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    found = (
        weights @ value, dscores @ key, dscores.swapaxes(2, 3) @ query, weights.swapaxes(2, 3) @ gradient
    )  # fmt: skip
    return tuple(x.swapaxes(1, 2) for x in found)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2e-6), (jnp.bfloat16, 4e-3)])
def test_value_and_gradients_equal_float64(mask, dtype, bound):
    heads = some_heads(dtype)
    for found, expected in zip(value_and_gradients(*heads, mask()), reference(*heads, mask()), strict=True):
        assert found.dtype == dtype
        assert np.abs(np.asarray(found, np.float64) - expected).max() < bound * np.abs(expected).max()


def test_it_equals_attention_that_keeps_its_scores():
    heads, mask = some_heads()[:3], MASKS["segments"]()
    np.testing.assert_allclose(
        causal_attend(*heads, mask=mask, scale=SCALE), attend(*heads, mask=mask, scale=SCALE), atol=1e-6
    )


def test_a_row_that_sees_nothing_is_zero_and_moves_nothing():
    heads = some_heads()
    mask = MASKS["causal"]().at[:, 5].set(False)
    found = value_and_gradients(*heads, mask)
    for array, expected in zip(found, reference(*heads, mask), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)
    out, dquery, _, _ = found
    assert not np.any(out[:, 5])
    assert not np.any(dquery[:, 5])


def test_large_scores_stay_finite():
    query, key, value, gradient = some_heads()
    found = value_and_gradients(query * 1e4, key * 1e4, value, gradient, MASKS["causal"]())
    assert all(jnp.isfinite(x).all() for x in found)


def test_no_scores_are_kept_for_the_backward_pass():
    heads, mask = some_heads()[:3], MASKS["causal"]()
    pull = jax.vjp(lambda *heads: causal_attend(*heads, mask=mask, scale=SCALE), *heads)[1]
    kept = [x for x in jax.tree.leaves(pull) if x.dtype != bool]
    assert kept
    assert max(x.size for x in kept) == BATCH * SEQ * HEADS * HEAD


def test_bfloat16_products_are_summed_in_float32(types_of_products):
    heads, mask = some_heads(jnp.bfloat16), MASKS["causal"]()
    asked = types_of_products(lambda *heads: value_and_gradients(*heads, mask), *heads)
    assert set(asked) == {("bf16", "bf16", "f32")}


def test_blocks_are_few_and_read_no_key_after_their_end(monkeypatch, types_of_products):
    def forward(*heads):
        return causal_attend(*heads, mask=MASKS["causal"](), scale=SCALE)

    monkeypatch.setattr(causal_attention, "_MOST_SCORES", ALL_AT_ONCE[0])

    def flops(smallest):
        monkeypatch.setattr(causal_attention, "_SMALLEST_BLOCK", smallest)
        return (
            jax.jit(lambda *heads: forward(*heads))
            .lower(*some_heads()[:3])
            .compile()
            .cost_analysis()["flops"]
        )

    whole = flops(SEQ)
    # Of 11 x 11 scores, blocks of 4 make 4 x 4 + 4 x 8 + 3 x 11.
    assert flops(4) < 0.8 * whole
    monkeypatch.setattr(causal_attention, "_SMALLEST_BLOCK", 1)
    # At most 8 blocks: of 2 queries here, with two products each.
    assert len(types_of_products(forward, *some_heads()[:3])) == 2 * 6


def test_many_scores_are_not_made_all_at_once():
    shape = jax.ShapeDtypeStruct((2, 1024, 8, 16), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 1024, 1024), jnp.bool_)

    def forward(query, key, value, mask):
        return causal_attend(query, key, value, mask=mask, scale=SCALE)

    memory = jax.jit(forward).lower(shape, shape, shape, mask).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 12e6
