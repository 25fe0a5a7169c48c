"""What a forward pass keeps for the backward pass, in a form a scan over layers stores at its own size.

XLA's CPU backend slices no bfloat16 array: it turns the stack of all layers to float32 first, which
takes three times the memory. It slices 16-bit integers as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def keep(x: Float[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """`x`, or its bits as integers where it has 16."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def kept(x: Shaped[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """What was given to `keep`, of type `dtype`. Bits have no derivative: 16 of them have no second one."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
