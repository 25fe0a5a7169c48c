"""LLVM's text of what `stages.ll` reads: a call's stages, and where each finds its buffers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ragjax.kernels.machine import compiled

_FUNCTIONS = "plan", "prepare", "reads", "preparation", "piece"
CALL_WORDS = 24
"""How many words of 8 bytes `%Call`, what a kernel knows of a call, has room for."""
_CALL_BYTES = """
define i64 @call.bytes() {
  ret i64 ptrtoint (ptr getelementptr (%Call, ptr null, i32 1) to i64)
}
"""
_LEFT_OUT = {
    "define i64 @prepare(": """
define i64 @prepare(ptr %call, ptr %room) {
  ret i64 0
}

define ptr @preparation(ptr %call, i64 %which, ptr %ahead) {
  ret ptr null
}
""",
    "define { ptr, i64, i64 } @reads(": """
define { ptr, i64, i64 } @reads(ptr %call) {
  ret { ptr, i64, i64 } zeroinitializer
}
""",
}
"""By how a definition begins: what stands for what a kernel leaves out."""


class Place(NamedTuple):
    """Where a stage finds a buffer."""

    is_result: bool
    """Whether it is one of the call's results, or one of its arguments."""
    which: int
    """Number of that."""
    behind: int
    """Bytes between its first and the buffer's."""
    shape: tuple[int, ...]
    """Of the buffer."""


class Stage(NamedTuple):
    """Where a stage finds all its buffers."""

    arguments: tuple[Place, ...]
    results: tuple[Place, ...]

    @property
    def all(self) -> tuple[Place, ...]:
        """Arguments, then results."""
        return self.arguments + self.results


def stage_functions(name: str, text: str, *, improve: bool = True) -> list[int]:
    """The addresses of the functions of a kernel that `stages.ll` tells of, which its text defines.

    Args:
      name: names it, whatever differs in it.
      text: may leave out what prepares, and what is to be fetched before.
      improve: whether LLVM improves the text, which takes it most of its time.
    """
    left_out = [default for start, default in _LEFT_OUT.items() if start not in text]
    whole = "\n".join([_interface(), *left_out, text, _CALL_BYTES])
    *functions, call_bytes = compiled(name, whole, [*_FUNCTIONS, "call.bytes"], improve=improve)
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(call_bytes)() <= 8 * CALL_WORDS
    return functions


def _interface() -> str:
    return Path(__file__).with_name("interface.ll").read_text()


def stage_table(stages: Sequence[Sequence[int]], places: Sequence[Stage]) -> str:
    """`@stages`: of each its functions, and which places are its own, if any are."""
    firsts = accumulate((len(stage.all) for stage in places), initial=0)
    counts = [(len(stage.arguments), len(stage.results)) for stage in places] or [(0, 0)]
    rows = (
        [*(f"ptr inttoptr (i64 {address} to ptr)" for address in functions), *_integers(first, *count)]
        for functions, first, count in zip(stages, firsts, counts, strict=False)
    )
    return _table("stages", "Stage", len(stages), rows)


def place_table(places: Sequence[Stage]) -> str:
    """`@places`, of all stages one after another, and the dimensions that they point to."""
    every = [place for stage in places for place in stage.all]
    shapes = (
        f"@shape.{number} = private constant [{len(place.shape)} x i64] [{', '.join(sizes)}]\n"
        for number, place in enumerate(every)
        for sizes in [_integers(*place.shape)]
    )
    rows = (
        [*_integers(place.is_result, place.which, place.behind, len(place.shape)), f"ptr @shape.{number}"]
        for number, place in enumerate(every)
    )
    return "".join(shapes) + _table("places", "Place", len(every), rows)


def _table(name: str, kind: str, count: int, rows: Iterable[Iterable[str]]) -> str:
    structs = ", ".join(f"%{kind} {{ {', '.join(row)} }}" for row in rows)
    return f"@{name} = private constant [{count} x %{kind}] [{structs}]\n"


def _integers(*values: int) -> list[str]:
    return [f"i64 {int(value)}" for value in values]
