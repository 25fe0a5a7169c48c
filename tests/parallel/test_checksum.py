"""A number that tells parameters apart, however the devices share them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.parallel.checksum import checksum


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(size=(4, 8, 16)).astype(np.float32)


def test_it_is_the_same_wherever_the_parts_lie(values):
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    shared = jax.device_put(values, NamedSharding(mesh, PartitionSpec(None, "b", "a")))
    assert checksum({"w": shared}) == checksum({"w": values}) == checksum({"w": jnp.asarray(values)})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_one_bit_or_two_places_change_it(values, dtype):
    before = np.array(jnp.asarray(values * 20, dtype))
    flipped, swapped = before.copy(), before.copy()
    flipped.view(f"uint{8 * before.itemsize}")[3, 7, 15] ^= 1
    highest = before.copy()
    highest.view(f"uint{8 * before.itemsize}")[0, 0, 0] ^= 1 << 8 * before.itemsize - 1
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    layers = before[[1, 0, 2, 3]]
    others = flipped, highest, swapped, layers, before.swapaxes(0, 1), before[:3]
    assert len({checksum(x) for x in (before, *others)}) == 7


def test_leaves_count_by_their_order(values):
    assert checksum([values, values[:2]]) != checksum([values[:2], values])
