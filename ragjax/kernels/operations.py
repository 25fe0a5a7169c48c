"""The operations of a traced function, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


class Fixed(NamedTuple):
    """A number in a program's text."""

    value: Any
    aval: Any

    @property
    def array(self) -> jax.Array:
        """That number, of its type."""
        return jnp.asarray(self.value, self.aval.dtype)


class Operation(NamedTuple):
    """One operation, of values that have numbers."""

    equation: Any
    """As JAX traced it."""
    inputs: list[int | Fixed]
    outputs: list[int]


@dataclass
class Operations:
    """Operations on CPU, one after another, and what they begin with."""

    all: list[Operation] = field(default_factory=list)
    values: dict[int, Any] = field(default_factory=dict)
    """What is there before the first, by their numbers."""
    outputs: list[int | Fixed] = field(default_factory=list)
    tree: Any = None
    """Of the outputs."""
    _count: int = 0

    def number(self) -> int:
        """That of a new value."""
        self._count += 1
        return self._count

    def add(self, program: ClosedJaxpr, inputs: Sequence[int | Fixed]) -> list[int | Fixed]:
        """Adds those of a program that is given some values; its outputs."""
        named: dict[Any, int | Fixed] = dict(zip(program.jaxpr.invars, inputs, strict=True))
        for variable, constant in zip(program.jaxpr.constvars, program.consts, strict=True):
            named[variable] = number = self.number()
            self.values[number] = constant

        def read(atom: Any) -> int | Fixed:
            return Fixed(atom.val, atom.aval) if isinstance(atom, Literal) else named[atom]

        for equation in program.jaxpr.eqns:
            given = [read(atom) for atom in equation.invars]
            inner = _by_kernel(equation)
            if inner is not None:
                outputs = self.add(inner, given)
            else:
                new = [self.number() for _ in equation.outvars]
                self.all.append(Operation(equation, given, new))
                outputs = list(new)
            named.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]


def operations_of(function: Callable[..., Any], *given: Any) -> Operations:
    """Those of a function of trees of arrays, of which kernels are called where there are kernels."""
    leaves, tree = jax.tree.flatten(given)
    program, made = jax.make_jaxpr(
        lambda *leaves: function(*jax.tree.unflatten(tree, leaves)), return_shape=True
    )(*leaves)
    found = Operations()
    inputs = [found.number() for _ in leaves]
    found.values = dict(zip(inputs, leaves, strict=True))
    found.outputs = found.add(program, inputs)
    found.tree = jax.tree.structure(made)
    return found


def evaluated(equation: Any, given: Sequence[Any]) -> list[Any]:
    """What an operation makes."""
    named = {
        atom: value
        for atom, value in zip(equation.invars, given, strict=True)
        if not isinstance(atom, Literal)
    }
    program = Jaxpr((), list(named), equation.outvars, [equation], equation.effects)
    return jaxpr_as_fun(ClosedJaxpr(program, ()))(*named.values())


def _by_kernel(equation: Any) -> ClosedJaxpr | None:
    """What `ragjax.kernels.instead.by_kernel` does on CPU, where an operation is that."""
    if equation.primitive.name != "custom_jvp_call":
        return None
    body = equation.params["call_jaxpr"]
    if [inner.primitive.name for inner in body.eqns] != ["platform_index", "cond"]:
        return None
    chosen = body.eqns[1]
    if chosen.invars[1:] != body.jaxpr.invars or chosen.outvars != body.jaxpr.outvars:
        return None
    by_platform = zip(chosen.params["branches"], chosen.params["branches_platforms"], strict=True)
    return next((branch for branch, names in by_platform if names is not None and "cpu" in names), None)
