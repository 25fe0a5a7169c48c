from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.generation.decoding import Settings, prefill
from ragjax.kernels.norm import norms_serve
from ragjax.models.decoder import Decoder, init_params
from ragjax.models.norm import layer_norm, norm_in_step, rms_norm

EPSILON = 0.05


def some_rows(dtype):
    """Input far from zero, scale, bias, and the gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 * jax.random.normal(keys[0], (2, 5, 16)) + 2
    gradient = jax.random.normal(keys[1], x.shape)
    scale, bias = 1 + jax.random.normal(keys[2], (16,)), jax.random.normal(keys[3], (16,))
    return x.astype(dtype), scale, bias, gradient.astype(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2e-6), (jnp.bfloat16, 3.5e-3)])
def test_value_and_gradients_equal_torchs_in_float64(dtype, bound):
    import torch

    x, scale, bias, gradient = some_rows(dtype)
    out, pull = jax.vjp(jax.jit(lambda *a: layer_norm(*a, EPSILON)), x, scale, bias)
    leaves = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (x, scale, bias)]
    theirs = torch.nn.functional.layer_norm(leaves[0], (16,), *leaves[1:], EPSILON)
    theirs.backward(torch.tensor(np.asarray(gradient, np.float64)))
    for ours, expected in zip(
        (out, *pull(gradient)), (theirs.detach(), *(leaf.grad for leaf in leaves)), strict=True
    ):
        expected = expected.numpy()
        assert np.abs(np.asarray(ours, np.float64) - expected).max() < bound * np.abs(expected).max()


def test_equal_features_become_the_bias():
    bias = jnp.arange(4.0)
    np.testing.assert_array_equal(
        layer_norm(jnp.full((3, 4), 7.0), jnp.ones(4), bias, 1e-5), bias[None] + jnp.zeros((3, 1))
    )


def test_one_value_a_row_is_kept_besides_the_input():
    x, scale, bias, _ = some_rows(jnp.bfloat16)
    pull = jax.vjp(lambda *a: layer_norm(*a, EPSILON), x, scale, bias)[1]
    bytes_kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    rows = x.size // 16
    assert bytes_kept <= x.nbytes + 2 * 4 * rows + scale.nbytes


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2e-6), (jnp.bfloat16, 3.5e-3)])
def test_rms_norm_and_its_gradients_equal_the_formula_in_float64(dtype, bound):
    x, scale, _, gradient = some_rows(dtype)
    out, pull = jax.vjp(jax.jit(lambda *a: rms_norm(*a, EPSILON)), x, scale)
    wide, factors, upstream = (np.asarray(a, np.float64) for a in (x, scale, gradient))
    root = np.sqrt((wide**2).mean(-1, keepdims=True) + EPSILON)
    along = (upstream * factors * wide).mean(-1, keepdims=True)
    expected = (
        wide / root * factors,
        upstream * factors / root - wide * along / root**3,
        (upstream * wide / root).sum((0, 1)),
    )
    assert (out.dtype, out.shape) == (dtype, x.shape)
    for ours, told in zip((out, *pull(gradient)), expected, strict=True):
        assert np.abs(np.asarray(ours, np.float64) - told).max() < bound * np.abs(told).max()


def test_gradients_of_rms_norm_are_those_jax_finds():
    x, scale, _, gradient = some_rows(jnp.float32)

    def plain(x, scale):
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON) * scale

    pulls = [jax.vjp(f, x, scale)[1](gradient) for f in (plain, lambda *a: rms_norm(*a, EPSILON))]
    for expected, ours in zip(*pulls, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6 * jnp.abs(expected).max())


def test_rms_norm_does_not_centre():
    np.testing.assert_allclose(rms_norm(jnp.full((3, 4), 7.0), 2 * jnp.ones(4), 0.0), jnp.full((3, 4), 2.0))


def test_rms_norm_keeps_one_value_a_row_besides_the_input():
    x, scale, _, _ = some_rows(jnp.bfloat16)
    pull = jax.vjp(lambda *a: rms_norm(*a, EPSILON), x, scale)[1]
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) <= x.nbytes + 4 * x.size // 16 + scale.nbytes


@pytest.mark.skipif(not norms_serve(1, 64), reason="needs llvmlite")
@pytest.mark.parametrize(
    ("shape", "dtype", "kernels"),
    [
        ((4, 1, 64), jnp.float32, 2),
        ((64,), jnp.float32, 2),
        ((2, 300, 64), jnp.float32, 0),
        ((4, 1, 60), jnp.float32, 0),
        ((4, 1, 64), jnp.bfloat16, 0),
    ],
)
def test_a_few_rows_in_a_step_are_one_kernel_each(shape, dtype, kernels):
    x = 3 * jax.random.normal(jax.random.key(0), shape, dtype) + 2
    scale, bias = jax.random.normal(jax.random.key(1), (2, shape[-1]))

    def both(x):
        return norm_in_step(x, scale, bias, EPSILON), norm_in_step(x, scale, None, EPSILON)

    program = jax.jit(both).lower(x)
    assert program.as_text().count("call @ragjax_norm") == kernels
    plain = layer_norm(x, scale, bias, EPSILON), rms_norm(x, scale, EPSILON)
    for ours, told in zip(program.compile()(x), plain, strict=True):
        assert (ours.shape, ours.dtype) == (shape, dtype)
        np.testing.assert_allclose(ours.astype(jnp.float32), told.astype(jnp.float32), atol=4e-6)


@pytest.mark.skipif(not norms_serve(1, 64), reason="needs llvmlite")
def test_a_program_that_writes_tokens_has_such_norms_in_its_blocks(tiny_config):
    config = replace(tiny_config, width=64, heads=4)
    settings = Settings(jnp.float32(0), jax.random.key(0), jnp.array([-1], jnp.int32))
    prompts, padding = jnp.zeros((2, 4), jnp.int32), jnp.zeros(2, jnp.int32)
    lowered = prefill.lower(init_params(config, 0), prompts, padding, settings, config=config, room=4)
    assert lowered.as_text().count("call @ragjax_norm_layer") == 3


@pytest.mark.parametrize("biased", [True, False])
def test_a_norm_in_a_step_has_the_gradients_of_any_other(biased):
    x, scale, bias, gradient = some_rows(jnp.float32)
    given = (x, scale, bias) if biased else (x, scale)
    pull = jax.vjp(lambda x, s, b=None: norm_in_step(x, s, b, EPSILON), *given)[1]
    plain = jax.vjp(lambda *a: (layer_norm if biased else rms_norm)(*a, EPSILON), *given)[1]
    for ours, told in zip(pull(gradient), plain(gradient), strict=True):
        np.testing.assert_allclose(ours, told, atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_few_tokens_that_are_not_written_are_exported(tiny_config, kind):
    config = replace(tiny_config, norm=kind)
    params, tokens = init_params(config, 0), jnp.zeros((1, 4), jnp.int32)
    program = jax.jit(lambda params, tokens: Decoder(config).apply({"params": params}, tokens).hidden)
    found = jax.export.export(program, platforms=["cpu", "tpu"])(params, tokens).call(params, tokens)
    np.testing.assert_allclose(found, program(params, tokens), atol=1e-6)
