"""Products of large matrices of float32, as training has them: bound by the processor.

XLA's CPU backend reaches 75 to 95 % of what the processor can, by shape. Here a part of a factor is copied
into panels that stay in the cache while rows of the other go by, as a BLAS has it (Goto and van de Geijn,
"Anatomy of High-Performance Matrix Multiplication", 2008), and what is copied next is fetched meanwhile.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.kernels.blocks_text import Sides, blocks_text
from ragjax.kernels.calls import custom_call
from ragjax.kernels.machine import kernels_serve, vectors
from ragjax.kernels.panels_text import panel_width

_FEWEST = 16
"""Rows for which it pays to copy the other factor."""
_LEAST = 2**21
"""Products of two numbers in a call that is worth its while."""


def blocks_serve(rows: int, inputs: int, outputs: int, *, y_transposed: bool = False) -> bool:
    """Whether there is such a product of [rows, inputs] and [inputs, outputs], and it pays.

    Not in a program for every number of any of them: that is made to be taken elsewhere.
    """
    size = rows, inputs, outputs
    if not kernels_serve() or any(map(jax.export.is_symbolic_dim, size)):
        return False
    pays = rows >= _FEWEST and rows * inputs * outputs >= _LEAST
    return pays and _are_whole(inputs, outputs, y_transposed=y_transposed)


def _are_whole(inputs: int, outputs: int, *, y_transposed: bool) -> bool:
    """Whether panels are filled up, and columns of a transposed y, which are turned, are of whole vectors."""
    whole = outputs % panel_width(vectors()) == 0
    return whole and not (y_transposed and inputs % vectors().lanes)


def multiply_blocks(
    x: Float[Array, "*rows in"] | Float[Array, "in *rows"],
    y: Float[Array, "in out"] | Float[Array, "out in"],
    *,
    x_transposed: bool = False,
    y_transposed: bool = False,
    onto: Float[Array, "*rows out"] | None = None,
    upper: bool = False,
) -> Float[Array, "*rows out"]:
    """`x @ y` in float32. A sum goes along some hundred inputs, and then over these sums.

    Rows keep their axes: XLA lets an elementwise function overwrite its operand, but not through a reshape.

    Args:
      x: float32.
      y: float32.
      x_transposed: whether x is [in, *rows], and x' is multiplied.
      y_transposed: whether y is [out, in], and y' is multiplied with; then of whole vectors of inputs.
      onto: what the product is added to, in place where nothing else reads it.
      upper: with `onto`: nothing is added below the diagonal, but for some hundred columns beside it.
    """
    inputs, *rows = x.shape if x_transposed else (x.shape[-1], *x.shape[:-1])
    outputs, within = y.shape if y_transposed else y.shape[::-1]
    # Machine code takes what it is given at its word.
    assert inputs == within
    assert _are_whole(inputs, outputs, y_transposed=y_transposed)
    assert x.dtype == y.dtype == jnp.float32
    assert onto is not None or not upper
    assert len(rows) == 1 or not upper
    out = jax.ShapeDtypeStruct((*rows, outputs), jnp.float32)
    if onto is not None:
        assert (onto.shape, onto.dtype) == (out.shape, out.dtype)
    if not out.size * inputs:
        return jnp.zeros(out.shape, out.dtype) if onto is None else onto
    sides, kind = Sides(x_transposed, y_transposed, onto is not None, upper), vectors()
    of_sides = "".join(str(int(side)) for side in sides)
    target = f"ragjax_blocks_{of_sides}_{kind.lanes}_{kind.registers}"
    name = custom_call(target, partial(blocks_text, sides, kind), improve=False)
    if onto is None:
        return jax.ffi.ffi_call(name, out, vmap_method="sequential")(x, y)
    call = jax.ffi.ffi_call(name, out, vmap_method="sequential", input_output_aliases={2: 0})
    return call(x, y, onto)
