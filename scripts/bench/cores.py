"""How far apart the cores are: nanoseconds until a core sees what another wrote, there and back.

Two threads, each held to a core, write to the same line of the cache in turns. Cores that share a cache take
some tens of nanoseconds, those that do not some hundreds; which two a virtual machine runs on may change from
moment to moment, so that it is measured several times. Programs whose threads read what others wrote a moment
before, as a decoding step's do, are slower by that.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import threading
import time
from itertools import combinations
from statistics import median

from turns import machine

TURNS = """
define void @take(ptr %place, i64 %first, i64 %end) {
entry:
  br label %look

look:
  %turn = phi i64 [ %first, %entry ], [ %turn, %look ], [ %turn.next, %answer ]
  %seen = load atomic i64, ptr %place acquire, align 8
  %is.mine = icmp eq i64 %seen, %turn
  br i1 %is.mine, label %answer, label %look

answer:
  %other = add i64 %turn, 1
  store atomic i64 %other, ptr %place release, align 8
  %turn.next = add i64 %turn, 2
  %are.more = icmp ult i64 %turn.next, %end
  br i1 %are.more, label %look, label %done

done:
  ret void
}
"""
FIRST, ROUNDS = 1_000, 1_000_000
"""Turns until both are there, and those that are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=9, help="how often it is measured (default 9)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    options = parser.parse_args()
    pairs = list(combinations(sorted(os.sched_getaffinity(0)), 2))
    found = {f"{a} and {b}": [round(apart_ns(a, b)) for _ in range(options.times)] for a, b in pairs}
    if options.json:
        print(json.dumps({"machine": machine(), "nanoseconds": found}))
        return
    print(machine())
    for cores, taken in found.items():
        print(f"cores {cores}  {median(taken):.0f} ns there and back ({min(taken)} to {max(taken)})")
    if not found:
        print("one core alone")


def two_cores_apart_ns() -> float:
    """Nanoseconds between the first two cores of this process; 0 where it has one."""
    cores = sorted(os.sched_getaffinity(0))
    return apart_ns(*cores[:2]) if len(cores) > 1 else 0.0


def apart_ns(one: int, other: int) -> float:
    """Nanoseconds of two turns, one of each core."""
    from ragjax.kernels.machine import compiled

    (address,) = compiled("turns", TURNS, ["take"])
    take = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)
    held = (ctypes.c_int64 * 16)()
    # The first line of the cache that begins in it.
    place = ctypes.addressof(held) + -ctypes.addressof(held) % 64

    def play(core: int, first: int, took: list[float]) -> None:
        # Of this thread alone.
        os.sched_setaffinity(0, {core})
        take(place, first, 2 * FIRST)
        begin = time.perf_counter()
        take(place, 2 * FIRST + first, 2 * (FIRST + ROUNDS))
        took.append(1e9 * (time.perf_counter() - begin) / ROUNDS)

    took: list[float] = []
    given = (one, 0, took), (other, 1, took)
    players = [threading.Thread(target=play, args=each, daemon=True) for each in given]
    for player in players:
        player.start()
    for player in players:
        player.join()
    return min(took)


if __name__ == "__main__":
    main()
