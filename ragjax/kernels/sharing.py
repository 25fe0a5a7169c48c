"""LLVM's text of a custom call whose stages XLA's threads share out among themselves."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from string import Template

from ragjax.kernels.machine import architecture, interface
from ragjax.kernels.stages import CALL_WORDS, Stage, place_table, stage_table
from ragjax.kernels.vectors_text import LINE

_TEXTS = "interface.ll", "reading_ahead.ll", "stages.ll", "shared.ll", "taking_part.ll"
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
"""Bytes that its pieces begin with which a thread fetches at most before it comes to them."""
_HASH_BITS = 12
"""As many of an address, well mixed, say where in the notes something is."""
_GOLDEN = 0x9E3779B97F4A7C15
"""A multiplier that spreads what it multiplies over the upper bits (Knuth, 1998, 6.4)."""
_NOTES = (ctypes.c_int64 * (4 * ((1 << _HASH_BITS) + 1) + LINE // 8))()
"""What `reading_ahead.ll` notes, which is never freed either."""
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_NOTES))
_PAUSES = {
    "x86_64": ("@llvm.x86.sse2.pause()", "@llvm.x86.sse2.pause()"),
    "aarch64": ("@llvm.aarch64.hint(i32 1)", "@llvm.aarch64.hint(i32)"),
    "arm64": ("@llvm.aarch64.hint(i32 1)", "@llvm.aarch64.hint(i32)"),
}
"""By the architecture: what a thread calls between two looks, to the good of its core's other one, and its
declaration."""


def _first_seat() -> int:
    return _line_of(_WAITING)


def _line_of(held: ctypes.Array[ctypes.c_int64]) -> int:
    """Address of the first line of the cache that begins in it."""
    start = ctypes.addressof(held)
    return start + -start % LINE


def shared_text(stages: Sequence[Sequence[int]], places: Sequence[Stage] = ()) -> str:
    """A module whose `handler` XLA can call: one stage after another.

    Args:
      stages: from `stage_functions`.
      places: of each stage where its buffers are; none: there is one stage, and all are the call's.
    """
    minor = interface()
    assert minor is not None
    assert len(places) == len(stages) or (len(stages) == 1 and not places)
    pause, pause_type = _PAUSES.get(architecture(), ("", ""))
    yields = hasattr(os, "sched_yield")
    text = "\n".join(Path(__file__).with_name(name).read_text() for name in _TEXTS)
    return Template(text).substitute(
        minor=minor, seats=_SEATS, first_seat=_first_seat(), looks=_LOOKS, works=_WORKS, fetched=_FETCHED,
        notes=_line_of(_NOTES), hash_shift=64 - _HASH_BITS, golden=_GOLDEN - (1 << 64),
        pause=pause and f"call void {pause}", pause_declared=pause and f"declare void {pause_type}",
        step_aside="%aside = call i32 @sched_yield()" if yields else "",
        step_aside_declared="declare i32 @sched_yield()" if yields else "",
        stage_count=len(stages), last_stage=len(stages) - 1, is_one="false" if places else "true",
        call_words=CALL_WORDS, most_places=max([1, *(len(stage.all) for stage in places)]),
        tables=stage_table(stages, places) + place_table(places),
    )  # fmt: skip
