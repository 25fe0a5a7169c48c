"""Kernels that follow one another, as one call.

Between two calls XLA's own code runs, which the weights drove out of the caches since the last: a microsecond
or more in which nothing is read. The threads of one call go from kernel to kernel by themselves, and each
fetches what it reads next while it waits for the others. What only the kernels read lies in one piece of
memory, where later results take the place of earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ragjax.kernels.calls import KERNELS
from ragjax.kernels.links import Link, Made, array_of, call_alone, call_together
from ragjax.kernels.operations import Fixed, Operation, Operations, evaluated, operations_of


def chained(function: Callable[..., Any], *given: Any) -> Any:
    """What `function` makes on CPU, where kernels that follow one another are one call.

    They do where nothing but a change of shape stands between them; what else reads nothing of theirs comes
    first. Kernels inside loops, branches and functions under `jax.jit` stay as they are. What
    `ragjax.kernels.instead.by_kernel` makes is made by its kernel, without derivatives and other platforms.

    Args:
      function: of arrays.
      *given: trees of arrays.
    """
    found = operations_of(function, *given)
    return jax.tree.unflatten(found.tree, _Chaining(found).outputs())


class _Chaining:
    """Goes through operations, and puts kernels off until something else reads what they make."""

    def __init__(self, operations: Operations):
        self._operations = operations
        self._values = operations.values
        self._links: list[Link] = []
        inputs = (
            (number, at)
            for at, operation in enumerate(operations.all)
            for number in operation.inputs
            if isinstance(number, int)
        )
        outputs = ((number, len(operations.all)) for number in operations.outputs if isinstance(number, int))
        self._read_last = dict([*inputs, *outputs])
        """By the numbers of values: the place of the last operation that reads it."""

    def outputs(self) -> list[jax.Array]:
        for at, operation in enumerate(self._operations.all):
            given = [self._value(each) for each in operation.inputs]
            made = self._put_off(operation, given, at)
            if made is None:
                if any(map(_is_pending, given)):
                    self._call(at)
                made = evaluated(operation.equation, [array_of(value) for value in given])
            self._values |= zip(operation.outputs, made, strict=True)
        self._call(len(self._operations.all))
        return [array_of(self._value(each)) for each in self._operations.outputs]

    def _value(self, each: int | Fixed) -> Any:
        return each if isinstance(each, Fixed) else self._values[each]

    def _put_off(self, operation: Operation, given: list[Any], at: int) -> Sequence[Any] | None:
        """What an operation makes that is not done now; none where it has to be."""
        equation = operation.equation
        kind = equation.primitive.name
        if kind == "ffi_call" and equation.params["target_name"] in KERNELS:
            return self._linked(equation, given, at)
        if not any(map(_is_pending, given)):
            return None
        shapes = [variable.aval.shape for variable in equation.outvars]
        first = given[0]
        if _keeps_order(equation) and first.whole is None:
            return [first._replace(shape=shapes[0])]
        if kind == "split" and first.whole is None:
            return _parts(first, equation.params["axis"], shapes)
        if kind == "concatenate":
            return _together(given, equation.params["dimension"])
        return None

    def _linked(self, equation: Any, given: list[Any], at: int) -> list[Made]:
        aliases = dict(equation.params["input_output_aliases"])
        given = [_operand(value) for value in given]
        written = {id(link.operands[operand]) for link in self._links for operand in link.aliases}
        writes_pending = any(_is_pending(given[operand]) for operand in aliases)
        reads_part = any(_is_pending(value) and value.whole is not None for value in given)
        # Who reads or writes what one before writes over is given it as it was.
        if writes_pending or reads_part or any(id(value) in written for value in given):
            self._call(at)
            given = [_operand(value) for value in given]
        link = Link(
            equation.params["target_name"],
            given,
            [variable.aval.shape for variable in equation.invars],
            [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in equation.params["result_avals"]],
            aliases,
        )
        self._links.append(link)
        return [Made(result, result.spec.shape) for result in link.made]

    def _call(self, at: int) -> None:
        """Calls what was put off, for the operations from a place on."""
        read = {
            value.result
            for number, value in self._values.items()
            if _is_pending(value) and self._read_last.get(number, -1) >= at
        }
        links, self._links = self._links, []
        if len(links) == 1:
            call_alone(links[0])
        elif links:
            call_together(links, read)


def _is_pending(value: Any) -> bool:
    return isinstance(value, Made) and value.is_pending


def _operand(value: Any) -> Any:
    """As a link keeps it: what is not pending as an array, or as what is fixed."""
    return value if _is_pending(value) or isinstance(value, Fixed) else array_of(value)


def _keeps_order(equation: Any) -> bool:
    """Whether an operation changes nothing but a shape."""
    if equation.primitive.name == "reshape":
        return equation.params["dimensions"] is None and equation.params.get("sharding") is None
    return equation.primitive.name == "squeeze"


def _parts(made: Made, axis: int, shapes: Sequence[tuple[int, ...]]) -> list[Made]:
    start, parts = 0, []
    for shape in shapes:
        parts.append(made._replace(shape=shape, axis=axis, start=start, whole=made.shape))
        start += shape[axis]
    return parts


def _together(parts: Sequence[Any], axis: int) -> list[Made] | None:
    """That of which all parts are given one after another, if they are."""
    end, first = 0, parts[0]
    for part in parts:
        if not isinstance(part, Made) or part.whole is None or part.axis != axis:
            return None
        if (part.result, part.whole, part.start) != (first.result, first.whole, end):
            return None
        end += part.shape[axis]
    return [Made(first.result, first.whole)] if end == first.whole[axis] else None
