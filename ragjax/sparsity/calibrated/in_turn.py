"""Large programs one after the other, so that no two have their temporaries at a time.

On CPU a program is called when the one before it is done: called ahead, it would hold its temporaries beside
those of the one that runs. Other devices take them in turn by themselves.
"""

from __future__ import annotations

import time
from typing import TypeVar

import jax

_FREED = 0.001
"""Seconds after which XLA's CPU backend has mostly given back the temporaries of a program that is done: the
thread that ran it does so after it told, which may be while the next one takes its own. (Of twelve layers of
GPT-2 124M this kept 28 MB from being held besides.) Nothing tells when they are gone."""
T = TypeVar("T")


def waited_for(made: T) -> T:
    """The arrays that a program makes; on CPU not before they are there, and its temporaries mostly gone.

    Args:
      made: any tree of arrays.
    """
    leaves = jax.tree.leaves(made)
    on_cpu = bool(leaves) and all(device.platform == "cpu" for device in leaves[0].devices())
    if on_cpu:
        jax.block_until_ready(made)
        time.sleep(_FREED)
    return made
