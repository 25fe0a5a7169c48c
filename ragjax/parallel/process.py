"""What a process sets once, before it computes: compiled programs are kept, and so is freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import jax

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3), from malloc.h."""


def prepare() -> None:
    """Sets both; call it before the first computation. Harmless where neither is of use."""
    keep_compiled_programs()
    keep_freed_memory()


def keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs on disk, unless the user has said where or not to.

    They lie in RAGJAX_CACHE/xla, or ~/.cache/ragjax/xla.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("RAGJAX_CACHE") or Path.home() / ".cache" / "ragjax"
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "xla"))


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed instead of handing it back to the kernel.

    On CPU every run of a program allocates its temporaries anew. Above 32 MB glibc maps and unmaps them,
    and the kernel clears their pages each time. One arena, so that all threads use what is kept.
    """
    if platform.libc_ver()[0] != "glibc" or jax.default_backend() != "cpu":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
        libc.mallopt(parameter, value)
