"""LLVM's text of a custom call whose pieces XLA's threads share."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from string import Template

from ragjax.kernels.machine import architecture
from ragjax.kernels.vectors_text import LINE

_NOTHING_TO_PREPARE = """
define i64 @prepare(ptr %call, ptr %room) alwaysinline {
  ret i64 0
}

define ptr @preparation(ptr %call, i64 %which, ptr %ahead) alwaysinline {
  ret ptr null
}

define ptr @begins(ptr %call, i64 %piece) alwaysinline {
  ret ptr null
}
"""

_TEXTS = "interface.ll", "shared.ll", "taking_part.ll"
"""One after another, types before what holds them."""
_SEATS = min(os.cpu_count() or 1, 64)
"""How many threads at most wait for the next call."""
_WAITING = (ctypes.c_int64 * ((_SEATS + 1) * LINE // 8))()
"""The seats in which they wait, each in a line of the cache of its own. They are never freed: machine code
knows their address, and may run when Python has ended."""
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_WAITING))
_LOOKS = 1000
"""How often a thread that is done looks whether the others are, or for the next call, before it goes: some
tens of microseconds."""
_WORKS = 256
"""Kernels that a thread in a seat is handed before it goes, since XLA may have other work for it."""
_FETCHED = 1 << 16
"""Bytes of its first pieces that a thread fetches at most while it makes preparations."""
_PAUSES = {
    "x86_64": ("@llvm.x86.sse2.pause()", "@llvm.x86.sse2.pause()"),
    "aarch64": ("@llvm.aarch64.hint(i32 1)", "@llvm.aarch64.hint(i32)"),
    "arm64": ("@llvm.aarch64.hint(i32 1)", "@llvm.aarch64.hint(i32)"),
}
"""By the architecture: what a thread calls between two looks, to the good of its core's other one, and its
declaration."""


def _first_seat() -> int:
    start = ctypes.addressof(_WAITING)
    return start + -start % LINE


def shared_text(minor: int, *, prepares: bool = False) -> str:
    """What calls `@plan`, `@prepare`, `@begins`, `@preparation` and `@piece`, which are to stand before it.

    Args:
      minor: version of XLA's interface.
      prepares: whether there are `@prepare`, `@begins` and `@preparation`; else they are such as do nothing.
    """
    pause, pause_type = _PAUSES.get(architecture(), ("", ""))
    parts = (Path(__file__).with_name(name).read_text() for name in _TEXTS)
    text = Template("\n".join(parts)).substitute(
        minor=minor, seats=_SEATS, first_seat=_first_seat(), looks=_LOOKS, works=_WORKS, fetched=_FETCHED,
        pause=pause and f"call void {pause}", pause_declared=pause and f"declare void {pause_type}",
    )  # fmt: skip
    return text if prepares else _NOTHING_TO_PREPARE + text
