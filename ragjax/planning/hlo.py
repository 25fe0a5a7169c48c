"""What a compiled program does, read from its text: collectives, and cycles of kernels, loops unrolled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_NAME = r"%([\w.\-]+)"
_COMPUTATION = re.compile(rf"^(ENTRY )?{_NAME} \(.*\{{$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?{_NAME} = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w*|c\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Collective(NamedTuple):
    """All collectives of one kind."""

    times: int
    """How many one chip takes part in."""
    bytes: int
    """Of the larger side, what goes in or what comes out, on one chip."""


class Traffic(NamedTuple):
    """What one run of a program does on each chip."""

    collectives: dict[str, Collective]
    """By kind."""
    cycles: int
    """What the compiler expects its kernels to take, collectives apart; 0 where it does not say."""


def read_traffic(text: str) -> Traffic:
    """Counts collectives and cycles; what stands in a loop as often as it turns.

    Loops whose number of turns the text does not tell, and every branch, count once. A collective that is
    split into start, overlap and end is one.

    Args:
      text: of the compiled program, `compiled.as_text()`.
    """
    computations, entry = _parse(text)
    found: dict[str, Collective] = {}
    seen: set[str] = set()
    cycles = 0
    for instruction, times, inside_kernel in _run(computations, entry):
        if not inside_kernel:
            cycles += times * instruction.cycles
        kind = instruction.operation.removesuffix("-start")
        if kind not in COLLECTIVES or instruction.channel in seen:
            continue
        seen |= {instruction.channel} if instruction.channel else set()
        before = found.get(kind, Collective(0, 0))
        found[kind] = Collective(before.times + times, before.bytes + times * instruction.moved)
    return Traffic(found, cycles)


@dataclass
class _Instruction:
    operation: str
    text: str
    """Operands and attributes."""
    moved: int
    """Bytes of the larger side."""

    @property
    def operands(self) -> list[str]:
        return _operands(self.text)

    @property
    def channel(self) -> str | None:
        found = re.search(r"channel_id=(\d+)", self.text)
        return found[1] if found else None

    @property
    def cycles(self) -> int:
        found = _CYCLES.search(self.text)
        return int(found[1]) if found else 0


@dataclass
class _Computation:
    instructions: list[_Instruction] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each value."""
    counts: dict[str, int] = field(default_factory=dict)
    """Whole numbers that are constants, by name."""
    named: dict[str, _Instruction] = field(default_factory=dict)
    root: _Instruction | None = None
    """What it returns."""


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    here, entry = _Computation(), ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            here = computations[head[2]] = _Computation()
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, operation, rest = found.groups()
            size = here.sizes[name] = _bytes(shape)
            if operation == "constant" and (number := re.match(r"(\d+)\)", rest)):
                here.counts[name] = int(number[1])
            operands = rest.split("), ")[0]
            given = sum(here.sizes.get(operand, 0) for operand in re.findall(_NAME, operands))
            if operation.endswith("-start"):
                # Its value holds what goes in beside what comes out.
                size -= given
            here.named[name] = _Instruction(operation, rest, max(size, given))
            here.instructions.append(here.named[name])
            here.root = here.named[name] if line.lstrip().startswith("ROOT") else here.root
    return computations, entry


def _run(
    computations: dict[str, _Computation], name: str, times: int = 1, inside_kernel: bool = False
) -> Iterator[tuple[_Instruction, int, bool]]:
    """Every instruction under a computation, how often it runs, and whether it is part of a kernel."""
    for instruction in computations[name].instructions:
        yield instruction, times, inside_kernel
        if instruction.operation == "while":
            turns = times * _turns(computations, computations[name], instruction.text)
            body = re.search(rf"body={_NAME}", instruction.text)
            assert body is not None, instruction.text
            yield from _run(computations, body[1], turns, inside_kernel)
            continue
        branches = _BRANCHES.search(instruction.text)
        called = _CALLED.findall(instruction.text) + re.findall(_NAME, branches[1] if branches else "")
        for inner in called:
            kernel = inside_kernel or instruction.operation not in ("call", "conditional", "async-start")
            yield from _run(computations, inner, times, kernel)


def _turns(computations: dict[str, _Computation], here: _Computation, text: str) -> int:
    """How often a loop turns: as the compiler says, or until its counter reaches what it is compared with.

    A loop over the parts of a product whose weights go round a ring takes two parts at a turn.
    """
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', text):
        return int(told[1])
    condition, body = (re.search(rf"{part}={_NAME}", text) for part in ("condition", "body"))
    assert condition is not None, text
    assert body is not None, text
    test = computations[condition[1]]
    for instruction in test.instructions:
        if instruction.operation == "compare" and "direction=LT" in instruction.text:
            bounds = [test.counts[name] for name in instruction.operands if name in test.counts]
            counters = [name for name in instruction.operands if name not in test.counts]
            if len(bounds) == 1 and len(counters) == 1:
                index = _index(test.named.get(counters[0]))
                first = _start(here, text, index)
                return max(0, -(-(bounds[0] - first) // _step(computations[body[1]], index)))
    return 1


def _start(here: _Computation, text: str, index: int | None) -> int:
    """What a loop's counter begins with, where it is a constant; else 0."""
    given = here.named.get(_operands(text)[0])
    if given is None or given.operation != "tuple" or index is None:
        return 0
    return here.counts.get(given.operands[index], 0)


def _step(body: _Computation, index: int | None) -> int:
    """What a loop's body adds to its counter, where that is to be seen; else 1."""
    if index is None or body.root is None or body.root.operation != "tuple":
        return 1
    after = body.named.get(body.root.operands[index])
    if after is None or after.operation != "add":
        return 1
    return next((body.counts[name] for name in after.operands if body.counts.get(name)), 1)


def _index(element: _Instruction | None) -> int | None:
    """Which part of a tuple an instruction takes."""
    if element is None or element.operation != "get-tuple-element":
        return None
    found = re.search(r"index=(\d+)", element.text)
    return int(found[1]) if found else None


def _operands(text: str) -> list[str]:
    return re.findall(_NAME, text.split(")")[0])


def _bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, without what pads it in memory."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])  # type: ignore[index]
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total
