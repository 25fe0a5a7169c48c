"""What XLA calls: a kernel whose pieces its threads share, or several such kernels, one after another."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ragjax.kernels.machine import compiled
from ragjax.kernels.sharing import shared_text
from ragjax.kernels.stages import Stage, stage_functions

KERNELS: dict[str, list[int]] = {}
"""By the names by which XLA calls them: the functions of those there are."""
_CHAINS: set[str] = set()
"""Names of calls of several."""
_MAKING = threading.Lock()


def custom_call(name: str, text: Callable[[], str], *, improve: bool = True) -> str:
    """The name by which XLA calls a kernel, which is compiled when it is first asked for.

    Args:
      name: names it, whatever differs in it.
      text: defines the functions that `stages.ll` tells of.
      improve: whether LLVM improves the text, which takes it most of its time.
    """
    with _MAKING:
        if name not in KERNELS:
            functions = stage_functions(name, text(), improve=improve)
            _register(name, shared_text([functions]), improve=improve)
            KERNELS[name] = functions
    return name


def call_of_stages(name: str, kernels: Sequence[str], places: Sequence[Stage]) -> str:
    """The name by which XLA calls kernels one after another.

    Args:
      name: names them and their places.
      kernels: from `custom_call`.
      places: where each finds its buffers.
    """
    with _MAKING:
        if name not in _CHAINS:
            _register(name, shared_text([KERNELS[kernel] for kernel in kernels], places))
            _CHAINS.add(name)
    return name


def _register(name: str, text: str, *, improve: bool = True) -> None:
    """Tells XLA the `handler` of a module."""
    (address,) = compiled(f"{name} shared", text, ["handler"], improve=improve)
    jax.ffi.register_ffi_target(name, _capsule(address), platform="cpu")


def _capsule(address: int) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, None, None)
