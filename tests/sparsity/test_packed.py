"""Packed masks come back exactly, whatever their size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.sparsity.packed import pack, pack_masks, unpack, unpack_masks


@pytest.mark.parametrize("shape", [(8,), (1,), (2, 3, 13), (2, 16, 64), (3, 5, 7)])
def test_a_mask_comes_back_exactly_from_an_eighth_of_its_bytes(shape):
    mask = jnp.asarray(np.random.default_rng(0).random(shape) < 0.5)
    packed = jax.jit(pack)(mask)
    assert packed.shape == (*shape[:-1], -(-shape[-1] // 8))
    assert packed.dtype == jnp.uint8
    np.testing.assert_array_equal(jax.jit(unpack, static_argnums=1)(packed, shape[-1]), mask)


def test_the_first_weight_is_the_lowest_bit():
    assert pack(jnp.asarray([True, False, False, True])).tolist() == [0b1001]


def test_a_tree_keeps_its_gaps():
    params = {"a": jnp.ones((2, 9)), "b": jnp.ones(3)}
    masks = {"a": params["a"] > 0, "b": None}
    packed = pack_masks(masks)
    assert packed["b"] is None
    np.testing.assert_array_equal(unpack_masks(packed, params)["a"], masks["a"])
