"""Kernels that are called as one, and where each finds what it reads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from ragjax.kernels.calls import call_of_stages
from ragjax.kernels.operations import Fixed
from ragjax.kernels.stages import Place, Stage
from ragjax.kernels.vectors_text import LINE


@dataclass(eq=False)
class Link:
    """A kernel that is to be called."""

    name: str
    """By which XLA calls it."""
    operands: list[Any]
    """Arrays, what is fixed, or what another link makes."""
    shapes: list[tuple[int, ...]]
    """In which it takes them."""
    results: list[jax.ShapeDtypeStruct]
    aliases: dict[int, int]
    """Results that take the place of operands, by the numbers of these."""
    arrays: dict[int, jax.Array] | None = None
    """What it made and others read; none: it was not called yet."""

    @property
    def made(self) -> Iterator[Result]:
        """Each of its results."""
        return (Result(self, number) for number in range(len(self.results)))


class Result(NamedTuple):
    """What a link makes."""

    link: Link
    number: int

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        """Its shape and type."""
        return self.link.results[self.number]

    @property
    def takes_a_place(self) -> bool:
        """Whether it stands where an operand stood."""
        return self.number in self.link.aliases.values()


class Made(NamedTuple):
    """A result in a shape of its own, or a part of it along an axis."""

    result: Result
    shape: tuple[int, ...]
    axis: int = 0
    start: int = 0
    whole: tuple[int, ...] | None = None
    """Shape of that of which it is a part; none: it is all."""

    @property
    def is_pending(self) -> bool:
        """Whether its link was not called yet."""
        return self.result.link.arrays is None

    @property
    def array(self) -> jax.Array:
        """It, when its link was called."""
        assert self.result.link.arrays is not None
        made = self.result.link.arrays[self.result.number].reshape(self.whole or self.shape)
        if self.whole is None:
            return made
        return jax.lax.slice_in_dim(made, self.start, self.start + self.shape[self.axis], axis=self.axis)


def array_of(value: Any) -> Any:
    """The array that a value is."""
    return value.array if isinstance(value, (Made, Fixed)) else value


def call_alone(link: Link) -> None:
    """Calls a kernel by itself."""
    call = jax.ffi.ffi_call(
        link.name, link.results, input_output_aliases=link.aliases, vmap_method="sequential"
    )
    link.arrays = dict(enumerate(call(*map(array_of, link.operands))))


def call_together(links: Sequence[Link], read: set[Result]) -> None:
    """Calls kernels one after another.

    Args:
      links: operands that one of them makes are whole, and made before; none is written over by another.
      read: what others read. What else is made lies in one piece of memory.
    """
    results = [result for link in links for result in link.made if result in read or result.takes_a_place]
    behind, size = _room(links, set(results))
    operands = {
        _identity(link, number): value
        for link in links
        for number, value in enumerate(link.operands)
        if not isinstance(value, Made)
    }
    numbers = {identity: number for number, identity in enumerate(operands)}

    def of_result(result: Result, shape: tuple[int, ...]) -> Place:
        if result in behind:
            return Place(True, len(results), behind[result], shape)
        return Place(True, results.index(result), 0, shape)

    def of_operand(link: Link, number: int) -> Place:
        value, shape = link.operands[number], link.shapes[number]
        if isinstance(value, Made):
            assert value.whole is None
            return of_result(value.result, shape)
        return Place(False, numbers[_identity(link, number)], 0, shape)

    stages = [
        Stage(
            tuple(of_operand(link, number) for number in range(len(link.operands))),
            tuple(of_result(result, result.spec.shape) for result in link.made),
        )
        for link in links
    ]
    names = [link.name for link in links]
    # A kept program finds it again by a name that says all of it.
    name = "ragjax_chain_" + hashlib.sha256(repr((names, stages)).encode()).hexdigest()[:16]
    call = jax.ffi.ffi_call(
        call_of_stages(name, names, stages),
        [*(result.spec for result in results), jax.ShapeDtypeStruct((size,), np.uint8)],
        input_output_aliases={
            numbers[_identity(link, operand)]: results.index(Result(link, number))
            for link in links
            for operand, number in link.aliases.items()
        },
        vmap_method="sequential",
    )
    *arrays, _ = call(*map(array_of, operands.values()))
    for link in links:
        link.arrays = {}
    for result, array in zip(results, arrays, strict=True):
        assert result.link.arrays is not None
        result.link.arrays[result.number] = array


def _identity(link: Link, number: int) -> Any:
    """The same for operands that may be one; what a kernel writes over and also reads is given twice."""
    value = link.operands[number]
    if isinstance(value, Fixed):
        return np.asarray(value.value, value.aval.dtype).tobytes(), value.aval.dtype, value.aval.shape
    if number in link.aliases and sum(other is value for other in link.operands) > 1:
        return link, number
    return id(value)


def _room(links: Sequence[Link], kept: set[Result]) -> tuple[dict[Result, int], int]:
    """Where in one piece of memory what is not kept has its place while it is read, and the bytes of all."""
    until = {
        value.result: at
        for at, link in enumerate(links)
        for value in link.operands
        if isinstance(value, Made)
    }
    behind: dict[Result, int] = {}
    taken: list[tuple[int, int, int]] = []
    size = LINE
    for at, link in enumerate(links):
        # Until a link is done, what it reads is there.
        taken = [each for each in taken if each[2] >= at]
        for result in link.made:
            if result in kept:
                continue
            wanted = math.prod(result.spec.shape) * result.spec.dtype.itemsize
            wanted += -wanted % LINE
            start = 0
            for first, end, _ in sorted(taken):
                if start + wanted <= first:
                    break
                start = max(start, end)
            behind[result] = start
            taken.append((start, start + wanted, until.get(result, at)))
            size = max(size, start + wanted)
    return behind, size
