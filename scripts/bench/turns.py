"""Two programs timed in turns, each in a process of its own that sleeps while the other works."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Peer:
    """A process that does a piece of work for each line it is sent, and tells how long it took."""

    def __init__(
        self,
        name: str,
        *options: str,
        interpreter: str = sys.executable,
        wait: bool = True,
        **environment: str,
    ):
        """Starts this script again as the peer `name`.

        Args:
          name: goes to the script as `--peer`.
          options: the script's own; what stands there last counts.
          interpreter: the Python that runs it.
          wait: until it is ready; else call `ready` before anything is timed.
          environment: variables besides those of this process.
        """
        self.name = name
        self.process = subprocess.Popen(
            [interpreter, *sys.argv, *options, "--peer", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"} | os.environ | environment,
        )  # fmt: skip
        if wait:
            self.ready()

    def ready(self) -> None:
        """Waits until it has started."""
        self._answer()

    def ask(self, what: str) -> dict:
        """Has one piece of work done: `seconds` passed, `cpu_seconds` of all cores, and what it tells."""
        print(what, file=self.process.stdin, flush=True)
        return self._answer()

    def ask_warm(self, what: str) -> dict:
        """`ask` for the second time in a row.

        While others worked, a virtual machine may have handed its free memory back to its host, which lends
        it again at a second or two a GB: the first time tells of that, and more where a program frees more.
        """
        self.ask(what)
        return self.ask(what)

    def close(self) -> dict:
        """Ends the process: what it has to tell at the end."""
        answer = self.ask("close")
        self.process.wait()
        return answer

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} stopped with code {self.process.wait()}")
        return json.loads(line)


def started(makers: dict[str, Callable[..., Peer]], device: str) -> dict[str, Peer]:
    """Peers that are ready, by name: at once on "cpu"; one by one on a card, where XLA chooses kernels by how
    long they take.

    Args:
      makers: make a peer each, and take its `wait`.
      device: "cpu" or "cuda".
    """
    at_once = device == "cpu"
    peers = {name: make(wait=not at_once) for name, make in makers.items()}
    for peer in peers.values() if at_once else ():
        peer.ready()
    return peers


def serve(start: Callable[[], tuple[dict[str, Callable[[], dict | None]], Callable[[], dict]]]) -> None:
    """Answers the lines of the parent process, one JSON object each, until it says "close".

    Args:
      start: makes the pieces of work, by name, and what tells the rest at the end.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    calls, closing = start()

    def answer(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer({})
    for line in sys.stdin:
        if line.strip() == "close":
            answer(closing())
            return
        usage, begin = cpu_seconds(), time.perf_counter()
        extra = calls[line.strip()]() or {}
        seconds = time.perf_counter() - begin
        answer({"seconds": seconds, "cpu_seconds": cpu_seconds() - usage} | extra)


def in_turns(programs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each took in each round, in alternating order; a first round is not counted.

    Args:
      programs: what waits until its work is done, by name.
      rounds: times each is measured.
    """
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name in list(programs)[:: 1 if number % 2 else -1]:
            begin = time.perf_counter()
            programs[name]()
            if number:
                taken[name].append(time.perf_counter() - begin)
    return taken


def waited(program: Callable, *given: object) -> None:
    """Runs a program of JAX's, and waits for what it makes."""
    import jax

    jax.block_until_ready(program(*given))


def cpu_seconds() -> float:
    """Seconds that the cores worked for this process, together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def machine() -> str:
    """Cores and the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores, {model or platform.processor()}"


def resident_mb(field: str) -> float:
    """VmRSS, the resident set now, or VmHWM, its peak, of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


class Memory(Protocol):
    """What a process holds beyond what it held at the start."""

    def forget_peak(self) -> None:
        """Lets the peak start again from what is held now."""

    def peak_mb(self) -> float:
        """The most that was held since."""


class Resident:
    """The resident set of this process."""

    def __init__(self):
        self._base = resident_mb("VmRSS")

    def forget_peak(self) -> None:
        forget_peak()

    def peak_mb(self) -> float:
        return resident_mb("VmHWM") - self._base

    def now_mb(self) -> float:
        """What is held at present."""
        return resident_mb("VmRSS") - self._base


class JaxCard:
    """The memory JAX takes of a graphics card; its peak counts from the start of the process."""

    def forget_peak(self) -> None:
        pass

    def peak_mb(self) -> float:
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


class TorchCard:
    """The memory torch takes of a graphics card."""

    def forget_peak(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak_mb(self) -> float:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20


def use(device: str) -> None:
    """Has JAX in this process and its peers work on "cpu" or "cuda", where they share the card's memory."""
    os.environ["JAX_PLATFORMS"] = device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def device_name(device: str) -> str:
    """What the figures were measured on: the graphics card, or `machine`."""
    if device == "cpu":
        return machine()
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


_LIBC = ctypes.CDLL(None)
if hasattr(_LIBC, "mallinfo2"):
    _LIBC.mallinfo2.restype = _Mallinfo2


def forget_peak() -> None:
    """Lets VmHWM start again from the present resident set, without what the compiler left behind."""
    _LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def allocated_mb() -> float:
    """What this process has asked malloc for and not given back: not what malloc keeps (glibc 2.33)."""
    info = _LIBC.mallinfo2()
    return (info.uordblks + info.hblkhd) / 2**20


def most_allocated_mb(work: Callable[[], object]) -> float:
    """The most that `work` has allocated at a time beyond what was before.

    It is looked at every millisecond: what is held for less than that may be missed.
    """
    gc.collect()
    before = allocated_mb()
    most, done = before, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, allocated_mb())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return most - before
