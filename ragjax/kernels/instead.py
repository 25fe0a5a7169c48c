"""What a kernel for CPU stands for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax


def by_kernel(kernel: Callable[..., Any], plain: Callable[..., Any], *given: Any) -> Any:
    """What `kernel` makes where the program runs on CPU, and else `plain`, whose derivatives it has anyway.

    For a program that is made to be taken elsewhere, `jax.export` refuses kernels: they are of this process.

    Args:
      kernel: makes arrays by custom calls, of which XLA knows no derivative.
      plain: makes the same in XLA's operations.
      *given: trees of arrays.
    """
    return _made(kernel, plain, *given)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _made(kernel, plain, *given):
    # A program may be compiled here for a device that is not.
    return jax.lax.platform_dependent(*given, cpu=kernel, default=plain)


@_made.defjvp
def _derived(kernel, plain, primals, tangents):
    return jax.jvp(plain, primals, tangents)
