"""Large programs one after the other, so that no two have their temporaries at a time.

On CPU a program is called when the one before it is done: called ahead, it would hold its temporaries beside
those of the one that runs. Other devices take them in turn by themselves.
"""

from __future__ import annotations

import time
from typing import TypeVar

import jax

_FREED = 0.001
"""Seconds after which a program that ran in a thread of XLA's has mostly given back its temporaries: the
thread does so after it told that what it made is there. Nothing tells when they are gone."""
T = TypeVar("T")


def run_where_called() -> None:
    """Has JAX run programs on CPU in the thread that calls them: at its return their temporaries are gone.

    To be called before JAX's first program; later it changes nothing. Other devices are not concerned.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def waited_for(made: T) -> T:
    """The arrays that a program makes; on CPU not before they are there, and its temporaries gone, or mostly
    so without `run_where_called`.

    Args:
      made: any tree of arrays.
    """
    leaves = jax.tree.leaves(made)
    on_cpu = bool(leaves) and all(device.platform == "cpu" for device in leaves[0].devices())
    if on_cpu and not all(leaf.is_ready() for leaf in leaves):
        jax.block_until_ready(made)
        time.sleep(_FREED)
    return made
