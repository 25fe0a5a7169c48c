"""Where the highest of many values stands, in one reading of them.

XLA's CPU backend reads values one by one to find a place, or copies them first.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from string import Template

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ragjax.kernels.calls import custom_call
from ragjax.kernels.machine import kernels_serve, vectors
from ragjax.kernels.vectors_text import all_lanes, constant


def highest_serves(columns: int) -> bool:
    """Whether there is such a kernel for rows of so many values."""
    return kernels_serve() and vectors().lanes <= columns < 2**31


def first_highest(values: Float[Array, "rows columns"]) -> Int32[Array, " rows"]:
    """The first place of each row's highest value; what is no number counts for -inf.

    Args:
      values: float32, at least a vector of them in a row.
    """
    rows, columns = values.shape
    # Machine code takes what it is given at its word.
    assert values.dtype == jnp.float32
    assert highest_serves(columns)
    out = jax.ShapeDtypeStruct((rows,), jnp.int32)
    if not rows:
        return jnp.zeros(out.shape, out.dtype)
    lanes = vectors().lanes
    name = custom_call(f"ragjax_first_highest_{lanes}", partial(highest_text, lanes))
    return jax.ffi.ffi_call(name, out, vmap_method="sequential")(values)


def highest_text(lanes: int) -> str:
    """A kernel that finds the places.

    Args:
      lanes: values in a vector.
    """
    own = Template(Path(__file__).with_name("highest.ll").read_text()).substitute(
        lanes=lanes, vector=f"<{lanes} x float>", integers=f"<{lanes} x i32>", mask=f"<{lanes} x i1>",
        lowest=all_lanes(constant(-math.inf), lanes), far=all_lanes("-1", lanes, "i32"),
        steps=f"<{', '.join(f'i32 {lane}' for lane in range(lanes))}>",
    )  # fmt: skip
    return own
