"""A quantized kernel multiplies as the floats it stands for, from its integers alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.quantization import Quantized, Scheme, encoded, grid, quantized, rounded, to_codes
from ragjax.quantization.packing import nibbles, pack, unpack
from ragjax.quantization.products import _fewest_bytes, _grouped

SCHEMES = [
    Scheme(8), Scheme(8, 16), Scheme(8, symmetric=False),
    Scheme(4), Scheme(4, 16), Scheme(4, 32, symmetric=False),
]  # fmt: skip
DRAWN = np.random.default_rng(0)
KERNEL = jnp.asarray(DRAWN.normal(size=(2, 64, 10)), jnp.float32)


def inputs(rows):
    return DRAWN.normal(size=(rows, 64)).astype(np.float32)


def test_two_integers_share_a_byte_and_come_apart_again():
    codes = jnp.asarray(DRAWN.integers(-8, 8, (3, 12, 5)), jnp.int8)
    packed = pack(codes, 3)
    assert packed.shape == (3, 6, 5)
    np.testing.assert_array_equal(unpack(packed, 3), codes)
    first, second = nibbles(packed)
    np.testing.assert_array_equal(first[:, :2], codes[:, :2])
    np.testing.assert_array_equal(second[:, :2], codes[:, 2:4])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_stands_for_the_rounded_kernel(scheme):
    made = quantized(KERNEL, scheme)
    assert made.shape == KERNEL.shape
    assert made.size == KERNEL.size
    np.testing.assert_array_equal(made.whole(), rounded(KERNEL, scheme))
    np.testing.assert_array_equal(made.nonzero(), made.whole() != 0)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    assert 8 * held == scheme.bits_per_weight(64) * made.size


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_its_product_is_that_of_the_floats(scheme, rows):
    one, x = jax.tree.map(lambda leaf: leaf[1], quantized(KERNEL, scheme)), inputs(rows)
    expected = x.astype(np.float64) @ np.asarray(one.whole(), np.float64)
    np.testing.assert_allclose(jax.jit(Quantized.multiply)(one, x), expected, atol=1e-5)
    # What other devices are given.
    given = _grouped(jnp.asarray(x), one.codes, one.scale, one.zero)
    np.testing.assert_allclose(_fewest_bytes(given), expected, atol=1e-5)


def test_more_axes_and_other_types_go_along():
    one, x = jax.tree.map(lambda leaf: leaf[0], quantized(KERNEL, Scheme(4, 16))), inputs(6).reshape(2, 3, 64)
    assert one.multiply(jnp.asarray(x)).shape == (2, 3, 10)
    short = one.multiply(jnp.asarray(x, jnp.bfloat16))
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, x @ np.asarray(one.whole()), atol=0.1, rtol=0.02)


def test_inputs_are_divided_by_what_the_weights_were_multiplied_with():
    scheme, divisor = Scheme(8), jnp.asarray(DRAWN.uniform(0.5, 2, (2, 64)), jnp.float32)
    spread = KERNEL * divisor[..., None]
    found = grid(spread, scheme)
    made = encoded(to_codes(spread, found, scheme), found, scheme, divisor)
    np.testing.assert_allclose(made.whole(), rounded(spread, scheme) / divisor[..., None], rtol=1e-6)
    # Half a step of the widest weights, over the least divisor.
    np.testing.assert_allclose(made.whole(), KERNEL, atol=0.51 * float(found.scale.max()) / 0.5)
    one, x = jax.tree.map(lambda leaf: leaf[0], made), inputs(3)
    np.testing.assert_allclose(one.multiply(x), x @ np.asarray(one.whole()), atol=1e-5)


def test_inputs_of_8_bits_are_rounded_each_token_by_its_largest(types_of_products):
    one, x = jax.tree.map(lambda leaf: leaf[0], quantized(KERNEL, Scheme(8, activations=8))), inputs(5)
    x[3] = 0
    step = np.abs(x).max(-1, keepdims=True) / 127
    whole = np.round(x / np.where(step == 0, 1, step)) * step
    np.testing.assert_allclose(one.multiply(x), whole @ np.asarray(one.whole(), np.float64), atol=1e-5)
    assert {"i8", "i32"} == set(sum(types_of_products(lambda k, x: k.multiply(x), one, x), ()))
