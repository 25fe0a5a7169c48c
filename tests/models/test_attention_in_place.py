"""Attention in training where a kernel serves, and where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ragjax.kernels import machine
from ragjax.models.attention import attend, causal_mask, within
from ragjax.models.causal_attention import causal_attend

BATCH, SEQ, HEADS, HEAD, SCALE = 2, 160, 3, 32, 0.3
KERNEL = "ragjax_causal"
"""Begins the names of custom calls that attend."""


def some_heads(dtype=jnp.float32, seq=SEQ):
    """Query, key, value, and the gradient of the output."""
    return tuple(jax.random.normal(jax.random.key(i), (BATCH, seq, HEADS, HEAD), dtype) for i in range(4))


def mask(seq=SEQ):
    places = jnp.arange(seq)[None]
    return within(causal_mask(places, places), places, places, 50)


def value_and_gradients(query, key, value, gradient, function=causal_attend):
    seen = mask(query.shape[1])
    out, pull = jax.vjp(lambda *heads: function(*heads, mask=seen, scale=SCALE), query, key, value)
    return out, *pull(gradient)


def lowered(*heads, platform="cpu"):
    # Another function each time, which is traced anew.
    traced = jax.jit(lambda *heads: value_and_gradients(*heads)).trace(*heads)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def all_close(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_a_kernel_attends_as_what_keeps_its_scores_does():
    heads = some_heads()
    all_close(value_and_gradients(*heads), value_and_gradients(*heads, function=attend))
    text = lowered(*heads)
    assert text.count(f"@{KERNEL}_forward") == text.count(f"@{KERNEL}_backward") > 0


def test_other_types_and_lengths_have_none():
    assert KERNEL not in lowered(*some_heads(jnp.bfloat16))
    assert KERNEL not in lowered(*some_heads(seq=150))


def test_another_platform_has_none_and_the_same_result(monkeypatch):
    heads = some_heads()
    assert KERNEL not in lowered(*heads, platform="tpu")
    by_kernel = value_and_gradients(*heads)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, cpu, default: default(*given))
    all_close(value_and_gradients(*heads), by_kernel)


def test_without_llvmlite_there_is_none(monkeypatch):
    monkeypatch.setattr(machine, "compiles", lambda: False)
    assert KERNEL not in lowered(*some_heads())


@pytest.mark.parametrize("axis", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_several_devices_have_none(axis):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis,))
    split = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    heads = jax.device_put(some_heads(), split)
    expected = value_and_gradients(*some_heads())
    with jax.set_mesh(mesh):
        assert KERNEL not in lowered(*heads)
        all_close(jax.jit(value_and_gradients)(*heads), expected)


def test_it_runs_in_shard_map_over_one_device():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(value_and_gradients, mesh=mesh, in_specs=spec, out_specs=spec)
    all_close(jax.jit(mapped)(*some_heads()), value_and_gradients(*some_heads()))


def test_a_second_derivative_is_that_of_what_keeps_its_scores():
    heads, seen = some_heads(seq=64)[:3], mask(64)

    def second(function):
        def first(query):
            out = function(query, *heads[1:], mask=seen, scale=SCALE)
            return jnp.square(out).sum()

        return jax.grad(lambda query: jnp.square(jax.grad(first)(query)).sum())(heads[0])

    np.testing.assert_allclose(second(causal_attend), second(attend), rtol=1e-3, atol=1e-4)


def test_no_scores_are_kept_for_the_backward_pass():
    heads, seen = some_heads()[:3], mask()
    pull = jax.vjp(lambda *heads: causal_attend(*heads, mask=seen, scale=SCALE), *heads)[1]
    kept = [x for x in jax.tree.leaves(pull) if x.dtype != bool]
    assert max(x.size for x in kept) == heads[0].size
