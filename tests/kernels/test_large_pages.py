"""Arrays in large pages are the arrays they were."""

from __future__ import annotations

import gc
import mmap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import large_pages
from ragjax.kernels.large_pages import LargePages

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages")
PAGE = 1 << 21


def arrays():
    key = jax.random.key(0)
    return {
        "codes": jax.random.randint(key, (3, 5, 7), -127, 128, jnp.int8),
        "kernel": (jax.random.normal(key, (700, 1100)), jnp.zeros((0, 4))),
        "scale": jnp.float32(3),
        "half": jax.random.normal(key, (33,), jnp.bfloat16),
    }


def place(array):
    return array.unsafe_buffer_pointer()


def test_arrays_are_what_they_were_whatever_becomes_of_the_others():
    pages, given = LargePages(), arrays()
    held = [pages.hold(given) for _ in range(3)]
    expected = jax.tree.map(np.array, given)
    del held[1], pages
    gc.collect()
    for tree in held:
        for found, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        held[0]["kernel"][0] @ held[1]["kernel"][0].T, given["kernel"][0] @ given["kernel"][0].T
    )


def test_they_lie_one_behind_the_other_from_the_start_of_a_large_page():
    pages = LargePages()
    first, second = pages.hold([jnp.arange(300.0), jnp.arange(5)])
    third = pages.hold(jnp.arange(7))
    assert place(first) % PAGE == 0
    # 1,200 bytes, and each begins at a multiple of 64.
    assert [place(x) - place(first) for x in (second, third)] == [1216, 1280]


def test_what_finds_no_room_any_more_has_a_stretch_of_its_own():
    pages = LargePages()
    small = pages.hold(jnp.arange(5))
    large = pages.hold(jnp.zeros(large_pages._CHUNK // 4 + PAGE))
    after = pages.hold(jnp.arange(9.0))
    assert place(small) % PAGE == place(large) % PAGE == 0
    np.testing.assert_array_equal(small, np.arange(5))
    np.testing.assert_array_equal(after, np.arange(9.0))
    assert not large.any()


@pytest.mark.parametrize("committed", [False, True])
def test_programs_see_no_other_placement(committed):
    given = jnp.arange(9.0)
    if committed:
        given = jax.device_put(given, jax.devices()[3])
    held = LargePages().hold(given)
    assert (held.committed, held.sharding) == (committed, given.sharding)


def test_what_is_no_array_on_one_device_stays_where_it_is():
    several = jax.sharding.NamedSharding(jax.make_mesh((8,), ("x",)), jax.sharding.PartitionSpec("x"))
    weak, key = jnp.asarray(3.0), jax.random.key(0)
    given = [np.arange(3), 4, None, jax.device_put(np.arange(8), several), weak, key]
    assert all(x is y for x, y in zip(LargePages().hold(given), given, strict=True))
    assert jax.jit(lambda x: LargePages().hold(x) + 1)(2) == 3


def test_they_stay_on_the_device_where_they_are():
    with jax.default_device(jax.devices()[1]):
        given = jnp.arange(5.0) + 1
    assert LargePages().hold(given).devices() == {jax.devices()[1]}


def test_a_stretch_is_asked_for_in_large_pages_up_to_its_end(monkeypatch):
    asked = []

    class Watched(mmap.mmap):
        def __new__(cls, file, length, **options):
            asked.append(length)
            return super().__new__(cls, file, length, **options)

        def madvise(self, advice):
            asked.append(advice)

    monkeypatch.setattr(large_pages.mmap, "mmap", Watched)
    held = LargePages().hold(jnp.zeros(large_pages._CHUNK // 4 + 1))
    assert asked[1:] == [mmap.MADV_HUGEPAGE]
    # From wherever the system lends it, the last page that is used is whole.
    assert asked[0] >= held.nbytes + 2 * PAGE


def test_a_system_without_large_pages_is_none_the_worse(monkeypatch):
    class Without(mmap.mmap):
        def madvise(self, *given):
            raise OSError(22, "Invalid argument")

    given = arrays()
    monkeypatch.setattr(large_pages.mmap, "mmap", Without)
    jax.tree.map(np.testing.assert_array_equal, LargePages().hold(given), given)
    monkeypatch.delattr(large_pages.mmap, "MADV_HUGEPAGE")
    assert LargePages().hold(given) is given
