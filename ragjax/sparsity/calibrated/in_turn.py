"""Large programs one after the other, so that no two have their temporaries at a time.

On CPU a program is called when the one before it is done: called ahead, it would hold its temporaries beside
those of the one that runs. Other devices take them in turn by themselves.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import TypeVar

import jax

_FREED = 0.001
"""Seconds after which a program that ran in a thread of XLA's has mostly given back its temporaries: the
thread does so after it told that what it made is there. Nothing tells when they are gone."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
_KEPT = 1 << 20
"""Bytes up to which freed memory is kept for later."""
T = TypeVar("T")


def spare_memory() -> None:
    """Has this process hold no more than it needs, for some per cent of its time.

    JAX runs programs on CPU in the thread that calls them, at whose return their temporaries are gone; that
    is to be said before its first program, and changes nothing later. And glibc's malloc gives back to the
    system what is freed, of which it else keeps a block's worth in pieces for later.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            libc.mallopt(parameter, _KEPT)


def on_cpu(made: object) -> bool:
    """Whether arrays lie on CPU, where the program that makes them is better waited for.

    Args:
      made: any tree of arrays.
    """
    leaves = jax.tree.leaves(made)
    return bool(leaves) and all(device.platform == "cpu" for device in leaves[0].devices())


def waited_for(made: T) -> T:
    """The arrays that a program makes; on CPU not before they are there, and its temporaries gone, or mostly
    so without `spare_memory`.

    Args:
      made: any tree of arrays.
    """
    if on_cpu(made):
        ran_beside = not all(leaf.is_ready() for leaf in jax.tree.leaves(made))
        jax.block_until_ready(made)
        if ran_beside:
            time.sleep(_FREED)
    return made
