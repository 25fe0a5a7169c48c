"""Kernels called as one against the same kernels called one by one."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels.attention import attend, attend_serves, hold_and_attend
from ragjax.kernels.chain import chained
from ragjax.kernels.instead import by_kernel
from ragjax.kernels.links import Link, Made, _room
from ragjax.kernels.machine import kernels_serve
from ragjax.kernels.norm import RowNorm, norm
from ragjax.kernels.panels import in_panels, multiply_panels
from ragjax.kernels.rounded import for_all_columns, in_quads, multiply_rounded, quads_serve

HEADS, HEAD, KEYS = 3, 16, 24
WIDTH = HEADS * HEAD
pytestmark = pytest.mark.skipif(not (kernels_serve() and attend_serves(HEAD)), reason="no kernels here")


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def product(x, seed, outputs):
    return multiply_panels(x, in_panels(drawn(x.shape[1], outputs, seed=seed)), outputs)


def buffers(batch):
    return drawn(batch, HEADS, KEYS, HEAD, seed=1), drawn(batch, HEADS, KEYS, HEAD, seed=2)


def held(together, key, value):
    batch = len(together)
    mask = jnp.broadcast_to(jnp.arange(KEYS) <= 5, (batch, 1, KEYS))
    at = jnp.full(batch, 5, jnp.int32)
    return hold_and_attend(together, key, value, at, mask=mask, scale=jnp.float32(0.25))


def block(x, key, value, seed=0):
    """A norm, a product, attention, and two products."""
    how = RowNorm(1 + drawn(WIDTH, seed=seed + 3), drawn(WIDTH, seed=seed + 4), 1e-5)
    together = product(norm(x, how), seed + 5, 3 * WIDTH).reshape(len(x), 1, 3 * HEADS, HEAD)
    attended, key, value = held(together, key, value)
    inner = product(attended.reshape(len(x), WIDTH), seed + 6, 100)
    return product(inner, seed + 7, WIDTH), key, value


def calls(function, *given):
    """The kernels that a program calls, by the names of their targets."""
    return re.findall(r"target_name=(\w+)", str(jax.make_jaxpr(function)(*given)))


def same(function, *given):
    """What a function makes, chained or not."""
    found = jax.jit(partial(chained, function))(*given)
    exact = jax.jit(function)(*given)
    jax.tree.map(np.testing.assert_array_equal, found, exact)
    return found


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_kernels_that_follow_one_another_are_one_call(rows):
    def two(x, key, value):
        first, *held = block(x, key, value)
        second, *_ = block(first, key, value, seed=10)
        return second, held

    given = drawn(rows, WIDTH, seed=20), *buffers(rows)
    assert len(calls(block, *given)) == 5
    (name,) = calls(partial(chained, block), *given)
    assert name.startswith("ragjax_chain_")
    same(block, *given)
    same(two, *given)


def test_it_is_one_call_at_each_turn_of_a_loop():
    def loop(step, x, key, value):
        return jax.lax.fori_loop(0, 5, lambda _, carry: step(*carry), (x, key, value))

    given = drawn(2, WIDTH), *buffers(2)
    found = jax.jit(partial(loop, partial(chained, block)))(*given)
    exact = jax.jit(partial(loop, block))(*given)
    jax.tree.map(np.testing.assert_array_equal, found, exact)
    assert len(calls(partial(loop, partial(chained, block)), *given)) == 1


def test_what_else_reads_of_them_stands_between_calls():
    def function(x):
        first = product(x, 1, 64)
        second = product(first, 2, 64)
        third = product(second * 2, 3, 64)
        return product(third, 4, 64) + first.sum(), x + 1

    names = calls(partial(chained, function), drawn(2, 32))
    assert [name.startswith("ragjax_chain_") for name in names] == [True, True]
    same(function, drawn(2, 32))


def test_what_reads_nothing_of_them_comes_first():
    def function(x, y):
        first = product(x, 1, 64)
        return product(first, 2, 64), product((y * 3).T, 3, 64), first

    assert len(calls(partial(chained, function), drawn(2, 32), drawn(32, 5))) == 1
    same(function, drawn(2, 32), drawn(32, 5))


def test_one_kernel_alone_is_called_as_ever():
    def function(x):
        return product(x, 1, 64) * 2

    (name,) = calls(partial(chained, function), drawn(2, 32))
    assert not name.startswith("ragjax_chain_")
    same(function, drawn(2, 32))


def test_parts_that_stand_together_again_are_the_whole():
    def function(x, *given):
        query, key, value = jnp.split(product(x, 5, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD), 3, axis=2)
        return held(jnp.concatenate([query, key, value], axis=2), *given)

    def turned(x, *given):
        query, key, value = jnp.split(product(x, 5, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD), 3, axis=2)
        return held(jnp.concatenate([query, value, key], axis=2), *given)

    def less(x, *given):
        query, key, value = jnp.split(product(x, 5, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD), 3, axis=2)
        return *held(jnp.concatenate([query, key, value], axis=2), *given), product(
            value.reshape(2, -1), 1, 8
        )

    given = drawn(2, WIDTH), *buffers(2)
    assert len(calls(partial(chained, function), *given)) == 1
    for each in (function, turned, less):
        same(each, *given)


def test_who_reads_what_is_written_over_gets_it_as_it_was():
    def function(x, key, value):
        mask = jnp.ones((2, 1, KEYS), bool)
        query = product(x, 5, WIDTH).reshape(2, 1, HEADS, HEAD)
        before = attend(query, key, value, mask=mask, scale=jnp.float32(1))
        together = product(x, 6, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD)
        out, new, _ = held(together, key, value)
        again = attend(out, key, value, mask=mask, scale=jnp.float32(1))
        out, newer, _ = held(together * 1, new, value)
        return before, again, attend(out, new, value, mask=mask, scale=jnp.float32(1)), newer, key

    given = drawn(2, WIDTH), *buffers(2)
    key = np.array(given[1])
    *_, newer, _ = same(function, *given)
    np.testing.assert_array_equal(given[1], key)
    assert (newer != key).any()


def test_what_another_call_made_and_this_one_writes_over_is_read_as_it_was():
    def function(x, key, value):
        together = product(x, 5, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD)
        out, key, value = held(together, key, value)
        again = product(out.reshape(2, WIDTH) * 2, 6, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD)
        out, newer, _ = held(again, key, value)
        mask = jnp.ones((2, 1, KEYS), bool)
        return attend(out, key, value, mask=mask, scale=jnp.float32(1)), newer

    same(function, drawn(2, WIDTH), *buffers(2))


def test_results_that_are_put_off_are_written_over():
    def function(x, key, value):
        together = product(x, 5, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD)
        out, key, value = held(together, key, value)
        again = product(out.reshape(2, WIDTH), 6, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD)
        return held(again, key, value)

    same(function, drawn(2, WIDTH), *buffers(2))


def test_one_array_is_written_over_as_two():
    def function(x, key):
        return held(product(x, 5, 3 * WIDTH).reshape(2, 1, 3 * HEADS, HEAD), key, key)

    same(function, drawn(2, WIDTH), buffers(2)[0])


def test_a_number_that_a_kernel_makes_is_not_read_before():
    def function(x, key, value):
        scale = product(x[:1], 7, 1).reshape(())
        query = product(x, 5, WIDTH).reshape(2, 1, HEADS, HEAD)
        return attend(query, key, value, mask=jnp.ones((2, 1, KEYS), bool), scale=scale)

    given = drawn(2, WIDTH), *buffers(2)
    assert len(calls(partial(chained, function), *given)) == 1
    same(function, *given)


def test_a_part_is_cut_out_for_who_reads_it():
    def function(x):
        _, middle, _ = jnp.split(product(x, 5, 96), 3, axis=1)
        return product(middle, 1, 64)

    same(function, drawn(2, 32))


def test_a_shape_that_turns_an_order_is_more_than_a_shape():
    def function(x):
        return product(jnp.reshape(product(x, 1, 24), (4, 12), order="F"), 2, 64)

    same(function, drawn(2, 32))


def test_what_is_fixed_is_told_apart_by_its_bits():
    def function(x, key, value):
        query = product(x, 5, WIDTH).reshape(2, 1, HEADS, HEAD)
        mask = jnp.ones((2, 1, KEYS), bool)
        each = [
            attend(query, key, value, mask=mask, scale=jnp.float32(by)) for by in (np.nan, 0.0, -0.0, 1.0)
        ]
        return each, [jnp.signbit(x) for x in each]

    given = drawn(2, WIDTH), *buffers(2)
    assert len(calls(partial(chained, function), *given)) == 1
    same(function, *given)


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_preparations_of_several_stages_are_shared_by_threads():
    width = 512
    codes = [
        np.random.default_rng(seed).integers(-127, 128, (width, width)).astype(np.int8) for seed in range(4)
    ]
    weights = [
        (
            in_quads(jnp.asarray(each)), for_all_columns(jnp.asarray(each.astype(np.int32).sum(0))),
            for_all_columns(jnp.full(width, 0.01, jnp.float16)),
        )
        for each in codes
    ]  # fmt: skip
    how = RowNorm(jnp.ones(width), jnp.zeros(width), 1e-5)

    def function(x):
        for each in weights:
            x = multiply_rounded(x, *each, width, bits=16, norm=how)
        return x

    def loop(step, x):
        return jax.lax.fori_loop(0, 100, lambda _, x: step(x), x)

    x = drawn(5, width)
    found = jax.jit(partial(loop, partial(chained, function)))(x)
    np.testing.assert_array_equal(found, jax.jit(partial(loop, function))(x))
    assert len(calls(partial(chained, function), x)) == 1


def test_a_kernel_by_platform_is_one_of_them():
    def function(x):
        second = by_kernel(partial(product, seed=2, outputs=64), lambda x: x, product(x, 1, 64))
        return product(second, 3, 64)

    (name,) = calls(partial(chained, function), drawn(2, 64))
    assert name.startswith("ragjax_chain_")
    same(function, drawn(2, 64))


def test_trees_outputs_and_inputs_are_as_they_were():
    def function(given):
        x = product(given["x"], 1, 64)
        return {"given": given["y"], "made": [product(x, 2, 64), 3.0], "none": None}

    found = same(function, {"x": drawn(2, 32), "y": jnp.arange(3)})
    assert found["none"] is None
    assert found["made"][1] == 3.0


def link(*results, reads=()):
    return Link(
        "some", list(reads), [each.shape for each in reads],
        [jax.ShapeDtypeStruct(shape, np.float32) for shape in results], {},
    )  # fmt: skip


def test_memory_is_taken_again_once_all_have_read_it():
    first = link((10, 3))
    second = link((5,), (100,), reads=[Made(next(first.made), (30,))])
    third = link((30,), reads=[Made(list(second.made)[1], (100,))])
    fourth = link((7,), (8,), reads=[Made(next(third.made), (30,)), Made(list(second.made)[1], (100,))])
    kept = {list(fourth.made)[1]}
    behind, size = _room([first, second, third, fourth], kept)
    places = [
        behind[result]
        for each in (first, second, third, fourth)
        for result in each.made
        if result not in kept
    ]
    # In lines of 64 bytes: 128, 64, 448 beside both, then in the place of the first, and behind.
    assert places == [0, 128, 192, 0, 128]
    assert size == 640
