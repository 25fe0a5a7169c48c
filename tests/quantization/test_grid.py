"""Grids and integers against torch's own quantizers and the package gguf's."""

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ragjax.quantization import Grid, Scheme, from_codes, grid, rounded, to_codes

SYMMETRIC = [Scheme(8), Scheme(8, 32), Scheme(4, 32), Scheme(4)]
SKEWED = [Scheme(8, symmetric=False), Scheme(4, 16, symmetric=False)]


@pytest.fixture(scope="module")
def kernel():
    """Two layers of 64 inputs and 6 outputs; some weights are 0, as are all of one output."""
    drawn = np.random.default_rng(0).normal(size=(2, 64, 6)).astype(np.float32)
    drawn[:, 5:20] = 0
    drawn[1, :, 2] = 0
    drawn[..., 4] = np.abs(drawn[..., 4])
    return drawn


def by_group(kernel, scheme):
    layers, inputs, outputs = kernel.shape
    return kernel.reshape(layers, scheme.groups(inputs), -1, outputs)


def exact(kernel, found, scheme):
    """The same in float64: nearest of all integers there are."""
    weights = by_group(kernel, scheme).astype(np.float64)
    scale = np.asarray(found.scale, np.float64)[:, :, None]
    zero = np.zeros_like(scale) if found.zero is None else np.asarray(found.zero, np.float64)[:, :, None]
    choices = (np.arange(scheme.lowest, scheme.highest + 1) - zero[..., None]) * scale[..., None]
    nearest = np.abs(choices - weights[..., None]).argmin(-1)
    return np.take_along_axis(choices, nearest[..., None], -1)[..., 0].reshape(kernel.shape)


@pytest.mark.parametrize("scheme", [*SYMMETRIC, *SKEWED], ids=str)
def test_every_weight_becomes_the_nearest_number_of_its_grid(kernel, scheme):
    found = grid(jnp.asarray(kernel), scheme)
    ours = np.asarray(from_codes(to_codes(jnp.asarray(kernel), found, scheme), found, scheme))
    best = exact(kernel, found, scheme)
    np.testing.assert_allclose(np.abs(ours - kernel), np.abs(best - kernel), atol=1e-6)
    np.testing.assert_array_equal(ours, rounded(jnp.asarray(kernel), scheme))


@pytest.mark.parametrize("scheme", [*SYMMETRIC, *SKEWED], ids=str)
def test_zero_stays_zero_and_no_weight_moves_by_more_than_half_a_step(kernel, scheme):
    found = grid(jnp.asarray(kernel), scheme)
    made = np.asarray(rounded(jnp.asarray(kernel), scheme))
    assert (made[kernel == 0] == 0).all()
    moved = by_group(np.abs(made - kernel), scheme).max(2)
    # Of 4 bits 8 is no integer: what would become it is a step away.
    most = 1.001 if scheme.bits == 4 and scheme.symmetric else 0.56
    assert (moved <= most * np.abs(np.asarray(found.scale)) + 1e-7).all()


@pytest.mark.parametrize("scheme", [*SYMMETRIC, *SKEWED], ids=str)
def test_scales_are_numbers_that_16_bits_hold(kernel, scheme):
    scale = np.asarray(grid(jnp.asarray(kernel), scheme).scale)
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("scheme", SKEWED, ids=str)
def test_grids_with_a_zero_point_are_those_torch_observes(kernel, scheme):
    observer = torch.ao.quantization.PerChannelMinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_channel_affine, quant_min=scheme.lowest, quant_max=scheme.highest
    )
    rows = (
        by_group(kernel, scheme).swapaxes(2, 3).reshape(-1, kernel.shape[1] // scheme.groups(kernel.shape[1]))
    )
    observer(torch.tensor(rows))
    scale, zero = (x.numpy() for x in observer.calculate_qparams())
    found = grid(jnp.asarray(kernel), scheme)
    ours, own = np.asarray(found.scale).reshape(-1), np.asarray(found.zero).reshape(-1)
    there = (rows != 0).any(1)
    np.testing.assert_allclose(ours[there], scale[there], rtol=2**-10)
    assert np.abs(own[there].astype(int) - zero[there]).max() <= 1
    assert (own[there] == zero[there]).mean() > 0.9


def test_integers_are_those_torch_makes_on_the_same_grid(kernel):
    scheme = Scheme(8, symmetric=False)
    found = grid(jnp.asarray(kernel), scheme)
    scale = np.where(np.asarray(found.scale) == 0, 1, found.scale)
    for layer in range(2):
        made = torch.quantize_per_channel(
            *(torch.tensor(x[layer]) for x in (kernel, scale[:, 0], np.asarray(found.zero)[:, 0])),
            axis=1, dtype=torch.qint8,
        )  # fmt: skip
        theirs = made.int_repr().numpy().astype(int)
        ours = np.asarray(to_codes(jnp.asarray(kernel), found, scheme))[layer].astype(int)
        assert np.abs(ours - theirs).max() <= 1
        assert (ours == theirs).mean() > 0.99


@pytest.mark.parametrize(("scheme", "kind"), [(Scheme(8, 32), "Q8_0"), (Scheme(4, 32), "Q4_0")])
def test_symmetric_groups_of_32_have_ggufs_scales_and_no_larger_an_error(scheme, kind):
    kernel = np.random.default_rng(1).normal(size=(1, 256, 40)).astype(np.float32)
    code = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quantize(np.ascontiguousarray(kernel[0].T), code)
    theirs = gguf.dequantize(blocks, code).T
    scales = blocks.reshape(40, 8, -1)[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    np.testing.assert_array_equal(np.asarray(grid(jnp.asarray(kernel), scheme).scale)[0], scales.T)
    ours = np.asarray(rounded(jnp.asarray(kernel), scheme))[0]
    assert (ours == theirs).mean() > 0.99
    assert np.square(ours - kernel[0]).sum() <= np.square(theirs - kernel[0]).sum() * (1 + 1e-6)


def test_codes_of_a_grid_of_ones_are_the_weights():
    codes = np.arange(-8, 8, dtype=np.float32).reshape(16, 1)
    plain = Grid(jnp.ones((1, 1)), None)
    np.testing.assert_array_equal(to_codes(jnp.asarray(codes), plain, Scheme(4)), codes)
