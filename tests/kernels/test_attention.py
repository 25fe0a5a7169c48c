from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import attention
from ragjax.kernels.attention import attend, attend_serves, hold_and_attend
from ragjax.kernels.machine import Vectors

# Sequences, queries, heads, heads of keys, keys, width of a head.
SHAPES = [
    (1, 1, 1, 1, 1, 4),
    (2, 1, 3, 3, 9, 64),
    (1, 3, 6, 2, 37, 20),
    (2, 5, 4, 1, 16, 8),
    (3, 1, 4, 2, 500, 80),
    (1, 40, 2, 2, 40, 128),
]


def given(shape, seed=0):
    batch, queries, heads, kv_heads, keys, head = shape
    rng = np.random.default_rng(seed)
    query = 3 * rng.standard_normal((batch, queries, heads, head))
    key, value = rng.standard_normal((2, batch, kv_heads, keys, head))
    mask = rng.random((batch, queries, keys)) < 0.7
    for row in mask.reshape(-1, keys):
        first, last = sorted(rng.integers(0, keys, 2))
        row[:first], row[last + 1 :], row[first], row[last] = False, False, True, True
    return *(x.astype(np.float32) for x in (query, key, value)), mask


def plainly(query, key, value, mask, scale):
    """In float64, one query and head at a time."""
    out = np.zeros(query.shape)
    group = query.shape[2] // key.shape[1]
    for b, q, h in np.ndindex(query.shape[:3]):
        seen = mask[b, q]
        if seen.any():
            scores = scale * key[b, h // group, seen].astype(np.float64) @ query[b, q, h]
            weights = np.exp(scores - scores.max())
            out[b, q, h] = weights / weights.sum() @ value[b, h // group, seen].astype(np.float64)
    return out


@jax.jit
def attended(query, key, value, mask, scale):
    return attend(query, key, value, mask=mask, scale=scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_that_of_numpy_in_float64(shape):
    query, key, value, mask = given(shape)
    found = attended(query, key, value, mask, np.float32(0.3))
    np.testing.assert_allclose(found, plainly(query, key, value, mask, 0.3), atol=5e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_and_values_of_8_bits(shape):
    query, key, value, mask = given(shape)
    codes = [np.round(30 * x).astype(np.int8) for x in (key, value)]
    scales = [np.random.default_rng(i).uniform(0.01, 0.05, (*key.shape[:3], 1)) for i in (1, 2)]
    scales = [scale.astype(np.float32) for scale in scales]
    found = attend(query, *codes, *scales, mask=mask, scale=np.float32(0.3))
    floats = (code * scale.astype(np.float64) for code, scale in zip(codes, scales, strict=True))
    np.testing.assert_allclose(found, plainly(query, *floats, mask, 0.3), atol=5e-6)


@pytest.mark.parametrize("size", [1e-6, 1.0, 30.0, 1e4])
def test_scores_of_any_size(size):
    query, key, value, mask = given((2, 2, 4, 2, 70, 16))
    found = attended(query * np.float32(size), key, value, mask, np.float32(1))
    expected = plainly(query * np.float64(np.float32(size)), key, value, mask, 1)
    # A score of n is known to n / 2^24 or so, and its weight as well.
    np.testing.assert_allclose(found, expected, atol=5e-6 * max(1, 10 * min(size, 30)))


def test_a_query_that_sees_nothing_gets_nothing():
    query, key, value, mask = given((2, 2, 2, 2, 19, 16))
    mask[1, 0] = False
    found = np.asarray(attended(query, key, value, mask, np.float32(1)))
    assert (found[1, 0] == 0).all()
    np.testing.assert_allclose(found, plainly(query, key, value, mask, 1), atol=5e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("keys", [9, 16])
def test_what_is_not_a_number_shows(keys, bad):
    query, key, value, mask = given((1, 1, 2, 2, keys, 16))
    mask[:] = True
    mask[..., 3] = False
    for place in ("query", "key", "score"):
        q, k = query.copy(), key.copy()
        if place == "query":
            q[0, 0, 0, 5] = bad
        elif place == "key":
            k[0, 0, 4, 5] = bad
        else:
            k[0, 0], q[0, 0, 0] = 1, bad
        with np.errstate(invalid="ignore"):
            found = np.asarray(attended(q, k, value, mask, np.float32(1)))
            expected = plainly(q, k, value, mask, 1)
        np.testing.assert_allclose(found, expected, atol=5e-6)
        assert not np.isnan(found[0, 0, 1]).any()


@pytest.mark.parametrize("keys", [1, 7, 8, 9, 25])
def test_only_what_may_be_seen_is_read(keys):
    query, key, value, _ = given((1, 1, 2, 2, keys, 16))
    for first in range(keys):
        for end in range(first + 1, keys + 1):
            mask = np.zeros((1, 1, keys), bool)
            mask[..., first:end] = True
            hidden = np.where(mask[0, 0, :, None], 0, np.nan).astype(np.float32)
            found = attended(query, key + hidden, value + hidden, mask, np.float32(1))
            np.testing.assert_allclose(found, plainly(query, key, value, mask, 1), atol=5e-6)


def test_a_query_depends_on_nothing_but_what_it_sees():
    query, key, value, mask = given((3, 4, 6, 2, 50, 64))
    together = np.asarray(attended(query, key, value, mask, np.float32(0.125)))
    for b in range(3):
        for q in range(4):
            first, end = np.flatnonzero(mask[b, q])[[0, -1]] + (0, 1)
            one = (x[b : b + 1, :, first:end] for x in (key, value))
            own = attended(
                query[b : b + 1, q : q + 1], *one, mask[b : b + 1, q : q + 1, first:end], np.float32(0.125)
            )
            np.testing.assert_array_equal(own[0, 0], together[b, q])


def test_buffers_of_one_sequence_need_no_first_axis():
    query, key, value, mask = given((1, 2, 6, 3, 33, 32))
    np.testing.assert_array_equal(
        attended(query, key[0], value[0], mask, np.float32(1)),
        attended(query, key, value, mask, np.float32(1)),
    )


def test_threads_that_share_many_calls_leave_out_none():
    query, key, value, mask = given((4, 2, 8, 8, 40, 64))

    @jax.jit
    def often(query):
        def turn(i, worst):
            found = attend(query, key, value * (i + 1), mask=mask, scale=jnp.float32(0.1))
            return jnp.maximum(worst, jnp.abs(found / (i + 1) - expected).max())

        return jax.lax.fori_loop(0, 1000, turn, jnp.float32(0))

    expected = attended(query, key, value, mask, np.float32(0.1))
    assert often(query) < 1e-5


@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(8, 16)])
def test_other_processors_vectors(kind, monkeypatch):
    monkeypatch.setattr(attention, "vectors", lambda: kind)
    query, key, value, mask = given((2, 3, 4, 2, 37, 40))
    found = attend(query, key, value, mask=mask, scale=np.float32(0.3))
    np.testing.assert_allclose(found, plainly(query, key, value, mask, 0.3), atol=5e-6)


def test_a_batch_is_mapped_over():
    query, key, value, mask = given((6, 1, 2, 2, 12, 16))
    mapped = jax.vmap(partial(attend, scale=jnp.float32(1)))(
        *(x.reshape(3, 2, *x.shape[1:]) for x in (query, key, value)), mask=mask.reshape(3, 2, 1, 12)
    )
    np.testing.assert_array_equal(
        mapped.reshape(query.shape), attended(query, key, value, mask, np.float32(1))
    )


def below(low, high):
    """Scores of keys of width 4, below that of a first one, which is 0."""
    scores = np.concatenate([[0.0], np.linspace(low, high, 999)]).astype(np.float32)
    query, key = np.zeros((1, 1, 1, 4), np.float32), np.zeros((1, 1, 1000, 4), np.float32)
    query[..., 0], key[0, 0, :, 0] = 1, scores
    return query, key, scores


@pytest.mark.parametrize(("low", "high"), [(-1, 0), (-20, -1), (-87, -60)])
def test_exponentials_are_those_of_numpy_in_float64(low, high):
    query, key, scores = below(low, high)
    for place in (1, 500, 999):
        # Values tell the weight of one key over that of the first.
        value = np.zeros((1, 1, 1000, 4), np.float32)
        value[0, 0, 0, 0], value[0, 0, place, 1] = 1, 1
        first, other = np.asarray(
            attended(query, key, value, np.ones((1, 1, 1000), bool), np.float32(1))
        ).ravel()[:2]
        np.testing.assert_allclose(other / first, np.exp(np.float64(scores[place])), rtol=4e-7)


def test_what_is_far_below_weighs_nothing():
    query, key, _ = below(-1e30, -88)
    value = np.ones((1, 1, 1000, 4), np.float32)
    value[0, 0, 0] = 0
    assert (np.asarray(attended(query, key, value, np.ones((1, 1, 1000), bool), np.float32(1))) == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x | {"mask": x["mask"][..., :5]},
        lambda x: x | {"mask": x["mask"].astype(np.int8)},
        lambda x: x | {"value": x["value"][:, :, :5]},
        lambda x: x | {"value": x["value"].astype(jnp.bfloat16)},
        lambda x: x | {"query": x["query"].astype(jnp.bfloat16)},
        lambda x: x | {"key": x["key"][0], "value": x["value"][0]},
        lambda x: x | {"query": x["query"][:, :, :3]},
        lambda x: x | {each: np.zeros(x[each].shape, np.int8) for each in ("key", "value")},
    ],
)
def test_machine_code_is_given_nothing_it_would_misread(change):
    query, key, value, mask = given((2, 1, 4, 2, 9, 16))
    kept = {"query": query, "key": key, "value": value, "mask": mask}
    attend(**kept, scale=jnp.float32(1))
    changed = change(kept)
    with pytest.raises(AssertionError):
        attend(**changed, scale=jnp.float32(1))


def put(buffer, new, at):
    """Sequence by sequence, in numpy."""
    out = buffer.copy()
    for sequence, first in enumerate(at):
        first = np.clip(first, 0, buffer.shape[2] - new.shape[1])
        out[sequence, :, first : first + new.shape[1]] = new[sequence].swapaxes(0, 1)
    return out


def given_new(shape, seed=0):
    query, key, value, mask = given(shape, seed)
    new = (
        np.random.default_rng(9).standard_normal((2, *query.shape[:2], shape[3], shape[5])).astype(np.float32)
    )
    return query, key, value, mask, *new


def together(query, key, value):
    return np.concatenate([query, key, value], 2)


@pytest.mark.parametrize("at", ["first", "last", "apart", "beyond", "before"])
@pytest.mark.parametrize("shape", SHAPES)
def test_new_keys_are_in_the_buffers_before_they_are_read(shape, at):
    query, key, value, mask, *new = given_new(shape)
    batch, queries, keys = mask.shape
    room = keys - queries
    places = {
        "first": [0],
        "last": [room],
        "apart": [room // 3, room, 0],
        "beyond": [keys + 3],
        "before": [-2],
    }
    places = np.array((places[at] * batch)[:batch], np.int32)
    found, *buffers = jax.jit(hold_and_attend)(
        together(query, *new), key, value, places, mask=mask, scale=np.float32(0.3)
    )
    expected = [put(buffer, part, places) for buffer, part in zip((key, value), new, strict=True)]
    for buffer, wanted in zip(buffers, expected, strict=True):
        np.testing.assert_array_equal(buffer, wanted)
    np.testing.assert_array_equal(found, attended(query, *expected, mask, np.float32(0.3)))


def test_new_keys_of_one_sequence_need_no_first_axis():
    query, key, value, mask, *new = given_new((1, 2, 6, 3, 33, 32))
    rest = {"mask": mask, "scale": np.float32(1)}
    at = np.array([5], np.int32)
    alone = hold_and_attend(together(query, *new), key[0], value[0], at, **rest)
    batched = hold_and_attend(together(query, *new), key, value, at, **rest)
    for one, other in zip(alone, batched, strict=True):
        np.testing.assert_array_equal(one.reshape(other.shape), other)


def test_a_loop_writes_into_the_buffers_it_was_given():
    query, key, value, mask, *new = given_new((4, 1, 4, 2, 300, 64))
    mask[:] = True

    @partial(jax.jit, donate_argnums=(0, 1))
    def often(key, value):
        def turn(i, held):
            at = jnp.full(4, i, jnp.int32)
            return hold_and_attend(together(query, *new), *held, at, mask=mask, scale=jnp.float32(1))[1:]

        return jax.lax.fori_loop(0, 200, turn, (key, value))

    lowered = often.lower(key, value).compile()
    assert lowered.memory_analysis().temp_size_in_bytes < key.nbytes / 4
    held = often(jnp.array(key), jnp.array(value))
    for buffer, before, part in zip(held, (key, value), new, strict=True):
        np.testing.assert_array_equal(buffer[:, :, :200], np.repeat(part.swapaxes(1, 2), 200, 2))
        np.testing.assert_array_equal(buffer[:, :, 200:], before[:, :, 200:])


def test_threads_that_share_heads_of_keys_leave_the_same_in_the_buffers():
    query, key, value, mask, *new = given_new((2, 8, 16, 1, 40, 64))
    mask[:] = True

    @jax.jit
    def often():
        def turn(i, carried):
            held, worst = carried
            # What a head that came too early read would be of another turn.
            fresh = [part * (1 + i % 7) for part in new]
            packed = jnp.concatenate([query, *fresh], 2)
            at = jnp.full(2, i % 32, jnp.int32)
            options = {"mask": mask, "scale": jnp.float32(0.1)}
            expected = [
                jax.lax.dynamic_update_slice_in_dim(x, part.swapaxes(1, 2), i % 32, 2)
                for x, part in zip(held, fresh, strict=True)
            ]
            wanted = attend(query, *expected, **options)
            out, *held = hold_and_attend(packed, *held, at, **options)
            apart = [jnp.abs(a - b).max() for a, b in zip((out, *held), (wanted, *expected), strict=True)]
            return held, jnp.maximum(worst, jnp.max(jnp.stack(apart)))

        return jax.lax.fori_loop(0, 2000, turn, ([jnp.array(key), jnp.array(value)], jnp.float32(0)))[1]

    assert often() == 0


@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(8, 16)])
def test_other_processors_put_new_keys_likewise(kind, monkeypatch):
    monkeypatch.setattr(attention, "vectors", lambda: kind)
    query, key, value, mask, *new = given_new((2, 3, 4, 2, 37, 40))
    at = np.array([1, 30], np.int32)
    found, *buffers = hold_and_attend(together(query, *new), key, value, at, mask=mask, scale=np.float32(0.3))
    expected = [put(x, part, at) for x, part in zip((key, value), new, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, buffers, expected)
    np.testing.assert_allclose(found, plainly(query, *expected, mask, 0.3), atol=5e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x | {"mask": x["mask"][..., :5]},
        lambda x: x | {"mask": x["mask"].astype(np.int8)},
        lambda x: x | {"value": x["value"][:, :, :5]},
        lambda x: x | {"key": x["key"].astype(jnp.bfloat16)},
        lambda x: x | {"together": x["together"].astype(jnp.bfloat16)},
        lambda x: x | {"together": x["together"][:, :, :4]},
        lambda x: x | {"together": x["together"][:, :, :7]},
        lambda x: x | {"at": x["at"][:1]},
        lambda x: x | {"at": x["at"].astype(np.int8)},
        lambda x: x | {"key": x["key"][0], "value": x["value"][0]},
    ],
)
def test_machine_code_that_writes_is_given_nothing_it_would_misread(change):
    query, key, value, mask, *new = given_new((2, 1, 4, 2, 9, 16))
    kept = {
        "together": together(query, *new),
        "key": key,
        "value": value,
        "at": np.zeros(2, np.int32),
        "mask": mask,
    }
    hold_and_attend(**kept, scale=jnp.float32(1))
    changed = change(kept)
    with pytest.raises(AssertionError):
        hold_and_attend(**changed, scale=jnp.float32(1))


@pytest.mark.parametrize(("head", "serves"), [(64, True), (4, True), (6, False), (1, False)])
def test_heads_are_whole_vectors(head, serves):
    assert attend_serves(head) is serves
