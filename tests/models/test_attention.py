import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.attention import attend, causal_mask, within

SHAPE = (2, 7, 3, 5)


def some_heads(dtype=jnp.float32):
    return tuple(jax.random.normal(jax.random.key(i), SHAPE, dtype) for i in range(3))


def order(length):
    return jnp.arange(length)[None]


def test_attention_equals_torchs():
    import torch

    query, key, value = some_heads()
    ours = attend(query, key, value, mask=causal_mask(order(7), order(7)), scale=0.3)
    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in (query, key, value))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    np.testing.assert_allclose(ours, theirs.transpose(1, 2), atol=2e-6)


def test_large_scores_stay_finite():
    query, key, value = some_heads()
    out = attend(query * 1e4, key * 1e4, value, mask=causal_mask(order(7), order(7)), scale=1.0)
    assert jnp.isfinite(out).all()


def test_a_query_that_sees_no_key_stays_finite():
    """As one on the padding before a prompt does; a NaN there would spread to every later layer."""
    nothing = causal_mask(order(7), order(7)).at[:, :2].set(False)
    assert jnp.isfinite(attend(*some_heads(), mask=nothing, scale=1.0)).all()


def test_dropout_leaves_the_mean_where_it_was():
    query, key, value = some_heads()
    mask = causal_mask(order(7), order(7))
    exact = attend(query, key, value, mask=mask, scale=0.5)

    def dropped(seed):
        return attend(query, key, value, mask=mask, scale=0.5, dropout_rate=0.3, dropout_key=seed)

    drawn = jax.vmap(dropped)(jax.random.split(jax.random.key(0), 4000))
    error = jnp.abs(drawn.mean(0) - exact) / (drawn.std(0) / 4000**0.5)
    assert error.max() < 5
    assert drawn.std(0).min() > 0


def test_sequences_and_heads_drop_apart():
    query, mask = jnp.zeros(SHAPE), causal_mask(order(7), order(7))
    out = attend(
        query, query, jnp.ones(SHAPE), mask=mask, scale=1.0, dropout_rate=0.5, dropout_key=jax.random.key(0)
    )[..., 0]
    apart = out.swapaxes(1, 2).reshape(-1, 7)
    assert len(np.unique(apart, axis=0)) == len(apart) == SHAPE[0] * SHAPE[2]


def test_bfloat16_heads_give_a_bfloat16_result_near_the_exact_one(types_of_products):
    heads, mask = some_heads(jnp.bfloat16), causal_mask(order(7), order(7))
    rough = attend(*heads, mask=mask, scale=0.5)
    exact = attend(*(x.astype(jnp.float32) for x in heads), mask=mask, scale=0.5)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.008)
    asked = types_of_products(lambda *heads: attend(*heads, mask=mask, scale=0.5), *heads)
    assert asked == [("bf16", "bf16", "f32")] * 2


@pytest.mark.parametrize("window", [0, 1, 3, 6, 99])
def test_a_window_counts_the_query_itself(window):
    seen = within(causal_mask(order(6), order(6)), order(6), order(6), window)[0]
    for query in range(6):
        first = max(0, query - window + 1) if window else 0
        np.testing.assert_array_equal(np.flatnonzero(seen[query]), np.arange(first, query + 1))


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (6, 1), (6, 6), (4, 2)])
def test_grouped_heads_equal_repeated_ones(heads, shared):
    query = jax.random.normal(jax.random.key(0), (2, 7, heads, 5))
    key, value = jax.random.normal(jax.random.key(1), (2, 2, 7, shared, 5))
    mask = causal_mask(order(7), order(7))
    grouped = attend(query, key, value, mask=mask, scale=0.4)
    # Head h reads what head h // (heads / shared) of the keys holds.
    whose = np.arange(heads) // (heads // shared)
    alone = attend(query, key[:, :, whose], value[:, :, whose], mask=mask, scale=0.4)
    np.testing.assert_allclose(grouped, alone, atol=1e-6)
