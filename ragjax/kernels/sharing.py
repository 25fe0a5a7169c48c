"""LLVM's text of a custom call whose pieces XLA's threads share: `shared.ll`."""

from __future__ import annotations

import ctypes
from pathlib import Path
from string import Template

from ragjax.kernels.machine import architecture
from ragjax.kernels.vectors_text import LINE

_NOTHING_TO_PREPARE = """
define void @prepare(ptr %call, ptr %room) alwaysinline {
  ret void
}
"""

_CALLS = (ctypes.c_int64 * (2 * LINE // 8))()
"""Holds, in a line of the cache of its own, how many calls have asked other threads to join in. It is never
freed: machine code knows its address, and may run when Python has ended."""
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_CALLS))
_LOOKS = 1000
"""How often a thread that is done looks for the next call before it goes: some tens of microseconds."""
_PAUSES = {
    "x86_64": ("@llvm.x86.sse2.pause()", "@llvm.x86.sse2.pause()"),
    "aarch64": ("@llvm.aarch64.hint(i32 1)", "@llvm.aarch64.hint(i32)"),
    "arm64": ("@llvm.aarch64.hint(i32 1)", "@llvm.aarch64.hint(i32)"),
}
"""By the architecture: what a thread calls between two looks, to the good of its core's other one, and its
declaration."""


def _calls_address() -> int:
    start = ctypes.addressof(_CALLS)
    return start + -start % LINE


def shared_text(minor: int, *, prepares: bool = False) -> str:
    """What calls `@plan`, `@prepare` and `@piece`, which are to stand before it.

    Args:
      minor: version of XLA's interface.
      prepares: whether there is a `@prepare`; else it is one that does nothing.
    """
    pause, pause_type = _PAUSES.get(architecture(), ("", ""))
    text = Template(Path(__file__).with_name("shared.ll").read_text()).substitute(
        minor=minor, calls=_calls_address(), looks=_LOOKS, pause=pause and f"call void {pause}",
        pause_declared=pause and f"declare void {pause_type}",
    )  # fmt: skip
    return text if prepares else _NOTHING_TO_PREPARE + text
