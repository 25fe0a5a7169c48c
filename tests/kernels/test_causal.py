"""Attention and its backward pass by a kernel against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import causal, causal_text
from ragjax.kernels.causal import causal_backward, causal_forward, causal_serves
from ragjax.kernels.machine import Vectors

SCALE = np.float32(0.3)
SHAPES = [(1, 32, 1, 32), (2, 96, 3, 64), (1, 320, 2, 32), (2, 288, 1, 128)]
"""Sequences, tokens, heads and their width: one block of keys and several, with a part of one and without."""


def heads_of(shape, seed=0):
    """Query, key, value, and the gradient of the output."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(4))


def causal_mask(length):
    return np.tril(np.ones((1, length, length), bool))


def windows(length):
    return causal_mask(length) & ~np.tril(np.ones((length, length), bool), -20)


def segments(length):
    """Of two sequences, each of two texts."""
    texts = np.stack([np.arange(length) >= length // 3, np.arange(length) >= length // 2])
    return causal_mask(length) & (texts[:, :, None] == texts[:, None, :])


def some_blind(length):
    """Queries that see nothing, and one that sees only the last key it may."""
    mask = causal_mask(length).copy()
    mask[:, [0, 5, length - 2]] = False
    mask[:, length - 1, : length - 1] = False
    return mask


MASKS = {"causal": causal_mask, "windows": windows, "segments": segments, "some_blind": some_blind}


def attended(query, key, value, gradient, mask, scale=SCALE):
    """What the kernels make: the output, and the gradients."""
    mask, scale = jnp.asarray(mask), jnp.float32(scale)

    @jax.jit
    def both(query, key, value, gradient):
        out, log_sum = causal_forward(query, key, value, mask, scale)
        shared = (gradient * out).sum(-1).swapaxes(1, 2)
        return out, *causal_backward(query, key, value, gradient, log_sum, shared, mask, scale)

    return both(query, key, value, gradient)


def reference(query, key, value, gradient, mask, scale=SCALE):
    """The same in float64; a query that sees nothing has no weights."""
    query, key, value, gradient = (
        np.asarray(x, np.float64).swapaxes(1, 2) for x in (query, key, value, gradient)
    )
    scores = np.where(mask[:, None], float(scale) * query @ key.swapaxes(2, 3), -np.inf)
    weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e9))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    dweights = gradient @ value.swapaxes(2, 3)
    dscores = float(scale) * weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    found = (
        weights @ value, dscores @ key, dscores.swapaxes(2, 3) @ query, weights.swapaxes(2, 3) @ gradient
    )  # fmt: skip
    return tuple(x.swapaxes(1, 2) for x in found)


def check(found, exact, bound=3e-6):
    for one, other in zip(found, exact, strict=True):
        assert np.abs(np.asarray(one, np.float64) - other).max() <= bound * np.abs(other).max()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_float64(shape, mask):
    if mask is segments and shape[0] == 1:
        shape = (2, *shape[1:])
    heads, seen = heads_of(shape), mask(shape[1])
    check(attended(*heads, seen), reference(*heads, seen))


def test_a_query_that_sees_nothing_is_zero_and_moves_nothing():
    heads, mask = heads_of((1, 160, 2, 32)), some_blind(160)
    out, dquery, _, _ = attended(*heads, mask)
    for row in (0, 5, 158):
        assert not np.any(out[:, row])
        assert not np.any(dquery[:, row])


def test_the_logarithm_of_a_sum_is_that_of_numpy():
    (query, key, value, _), mask = heads_of((2, 288, 2, 32)), causal_mask(288)
    found = causal_forward(query, key, value, mask, jnp.float32(SCALE))[1]
    scores = SCALE * np.einsum("bqhd,bkhd->bhqk", query.astype(np.float64), key)
    expected = np.log(np.where(mask[:, None], np.exp(scores), 0).sum(-1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(4, 32), Vectors(8, 16)])
def test_other_processors_vectors(kind, monkeypatch):
    monkeypatch.setattr(causal, "vectors", lambda: kind)
    heads, mask = heads_of((2, 144, 2, 16)), windows(144)
    check(attended(*heads, mask), reference(*heads, mask))


def test_highest_scores_may_come_first_and_last():
    query, key, value, gradient = heads_of((1, 320, 1, 32))
    key *= np.linspace(0.01, 30, 320, dtype=np.float32)[None, :, None, None]
    mask = causal_mask(320)
    for keys in (key, key[:, ::-1].copy()):
        heads = query, keys, value, gradient
        check(attended(*heads, mask), reference(*heads, mask), 3e-5)


def test_large_scores_stay_finite():
    query, key, value, gradient = heads_of((1, 160, 2, 32))
    found = attended(query * 1e4, key * 1e4, value, gradient, causal_mask(160))
    assert all(np.isfinite(x).all() for x in found)


def test_what_is_no_number_is_told_where_it_is_seen():
    (query, key, value, gradient), mask = heads_of((1, 160, 2, 32)), causal_mask(160)
    key[0, 100, 1, 0] = np.nan
    out = np.asarray(attended(query, key, value, gradient, mask)[0])
    assert np.isnan(out[0, 100:, 1]).all()
    assert np.isfinite(out[0, :100]).all()
    assert np.isfinite(out[0, :, 0]).all()


def test_threads_that_share_many_calls_leave_out_none():
    (query, key, value, gradient), mask = heads_of((2, 288, 3, 32)), causal_mask(288)
    expected = attended(query, key, value, gradient, mask)
    for _ in range(200):
        for one, other in zip(attended(query, key, value, gradient, mask), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_batch_is_mapped_over():
    (query, key, value, _), mask = heads_of((4, 64, 2, 32)), causal_mask(64)
    apart = [x.reshape(2, 2, *x.shape[1:]) for x in (query, key, value)]
    mapped = jax.vmap(lambda *heads: causal_forward(*heads, mask, jnp.float32(SCALE))[0])(*apart)
    whole = causal_forward(query, key, value, mask, jnp.float32(SCALE))[0]
    np.testing.assert_array_equal(mapped.reshape(whole.shape), whole)


def test_nothing_is_attended_to_by_nothing():
    empty, mask = np.zeros((0, 32, 2, 32), np.float32), causal_mask(32)
    assert all(x.shape == empty.shape for x in attended(empty, empty, empty, empty, mask))


def test_machine_code_is_given_nothing_it_would_misread():
    (query, key, value, gradient), mask = heads_of((2, 64, 2, 32)), causal_mask(64)
    scale, numbers = jnp.float32(SCALE), np.zeros((2, 2, 64), np.float32)
    causal_backward(query, key, value, gradient, numbers, numbers, mask, scale)
    wrong = [
        {"query": query[:, :63]},
        {"query": query[:, :, :1]},
        {"key": key[:, :, :1]},
        {"value": value[:1]},
        {"value": value.astype(np.float16)},
        {"gradient": gradient[..., :16]},
        {"log_sum": numbers[:, :, :32]},
        {"shared": numbers.swapaxes(1, 2)},
        {"shared": numbers.astype(np.float16)},
        {"mask": mask[:, :32]},
        {"mask": mask.astype(np.int8)},
        {"mask": np.concatenate([mask] * 3)},
    ]
    given = {
        "query": query, "key": key, "value": value, "gradient": gradient, "log_sum": numbers,
        "shared": numbers, "mask": mask, "scale": scale,
    }  # fmt: skip
    for other in wrong:
        with pytest.raises(AssertionError):
            causal_backward(**given | other)
    with pytest.raises(AssertionError):
        causal_forward(query, key[:1], value, mask, scale)


def test_they_serve_whole_panels_of_heads_that_a_stack_holds(monkeypatch):
    monkeypatch.setattr(causal, "vectors", lambda: Vectors(16, 32))
    assert causal_serves(1, 64, 32)
    assert causal_serves(8, 1024, 128)
    assert not causal_serves(1, 63, 64)
    assert not causal_serves(1, 64, 80)
    assert not causal_serves(1, 64, 160)
    monkeypatch.setattr(causal, "kernels_serve", lambda: False)
    assert not causal_serves(1, 64, 64)


def test_a_block_of_queries_is_of_whole_blocks_of_keys():
    """Where queries of a block begin behind the first, the scores are those of what stands first."""
    assert causal_text._QUERIES % causal_text._KEYS == 0
