import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels.norm import norms_serve
from ragjax.models.norm import layer_norm, rms_norm

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
        ((2, 20, 64), jnp.float32, 0),
        ((4, 1, 60), jnp.float32, 0),
        ((4, 1, 64), jnp.bfloat16, 0),
    ],
)
def test_a_few_rows_of_float32_are_one_kernel_each(shape, dtype, kernels):
    x = 3 * jax.random.normal(jax.random.key(0), shape, dtype) + 2
    scale, bias = jax.random.normal(jax.random.key(1), (2, shape[-1]))

    def both(x):
        return layer_norm(x, scale, bias, EPSILON), rms_norm(x, scale, EPSILON)

    program = jax.jit(both).lower(x)
    assert program.as_text().count("call @ragjax_norm") == kernels
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    plain = [
        y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPSILON) * scale for y in (centred, wide)
    ]
    for ours, told in zip(program.compile()(x), (plain[0] + bias, plain[1]), strict=True):
        assert (ours.shape, ours.dtype) == (shape, dtype)
        np.testing.assert_allclose(ours.astype(jnp.float32), told, atol=4e-6 if kernels else 0.05)


@pytest.mark.skipif(not norms_serve(1, 64), reason="needs llvmlite")
def test_gradients_of_few_rows_are_those_of_many():
    x, scale, bias, gradient = (jnp.tile(each, 4) for each in some_rows(jnp.float32))
    pull = jax.vjp(lambda *a: layer_norm(*a, EPSILON), x, scale, bias)[1]
    many = jax.vjp(lambda *a: layer_norm(*a, EPSILON), jnp.tile(x, (9, 1, 1)), scale, bias)[1]
    expected = many(jnp.tile(gradient, (9, 1, 1)))
    for ours, told, times in zip(pull(gradient), expected, (1, 9, 9), strict=True):
        told = told[:2] if times == 1 else told / times
        np.testing.assert_allclose(ours, told, rtol=1e-5, atol=1e-5)
