"""Operations of a program's matrix products, counted in the program as traced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def product_flops(jaxpr: core.Jaxpr) -> int:
    """Operations of all matrix products, two for each multiplication, over all devices.

    What the backward pass computes again counts, and what pads a vocabulary. A scan counts as often as it
    runs, a loop without a fixed number of turns once, of branches the largest. (XLA's `cost_analysis` counts
    the body of every loop once.)

    Example:
      >>> import jax, jax.numpy as jnp
      >>> a = jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)
      >>> square = lambda a: jax.lax.scan(lambda x, w: (x @ w, None), a[0], a)[0]
      >>> product_flops(jax.make_jaxpr(square)(a).jaxpr)
      4096
    """
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: core.JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left: Any = equation.invars[0].aval
        out: Any = equation.outvars[0].aval
        return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    inner = [product_flops(jaxpr) for jaxpr in _inside(list(equation.params.values()))]
    if equation.primitive.name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner) if equation.primitive.name == "scan" else sum(inner)


def _inside(value: Any) -> Iterator[core.Jaxpr]:
    """The programs among an equation's parameters."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _inside(one)
