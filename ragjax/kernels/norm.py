"""LayerNorm and RMSNorm of a few rows, as a decoding step has them.

XLA's CPU backend makes four programs of a norm, of which calling them takes most of the time.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from string import Template

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.kernels.machine import custom_call, kernels_serve, vectors
from ragjax.kernels.sharing import shared_text
from ragjax.kernels.vectors_text import everywhere

_MOST = 1 << 15
"""Values above which XLA's programs are worth their calls, and one thread is not enough."""


def norms_serve(rows: int, width: int) -> bool:
    """Whether there is such a kernel for so many rows of so many features."""
    if not kernels_serve() or any(map(jax.export.is_symbolic_dim, (rows, width))):
        return False
    return 0 < rows * width <= _MOST and width % vectors().lanes == 0


def norm(
    x: Float[Array, "rows width"],
    scale: Float[Array, " width"],
    bias: Float[Array, " width"] | None,
    epsilon: float,
) -> Float[Array, "rows width"]:
    """LayerNorm of each row, or RMSNorm where there is no bias.

    Args:
      x: float32.
      scale: multiplies each feature.
      bias: is added to each feature; none: the mean is not taken off either.
      epsilon: added to the variance, or to the mean square.
    """
    rows, width = x.shape
    given = [scale] if bias is None else [scale, bias]
    # Machine code takes what it is given at its word.
    assert norms_serve(rows, width)
    assert all(each.shape == (width,) for each in given)
    assert all(each.dtype == jnp.float32 for each in (x, *given))
    lanes = vectors().lanes
    text = partial(_text, lanes, centred=bias is not None)
    name = custom_call(f"ragjax_norm_{'rms' if bias is None else 'layer'}_{lanes}", text)
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(x.shape, jnp.float32), vmap_method="sequential")
    return call(x, scale, jnp.float32(epsilon), *given[1:])


def _text(lanes: int, minor: int, *, centred: bool) -> str:
    """A module whose `handler` makes norms."""
    own = Template(Path(__file__).with_name("norm.ll").read_text()).substitute(
        lanes=lanes, vector=f"<{lanes} x float>",
        # What begins with a semicolon is a comment.
        centred="" if centred else "; ", made="%k.made" if centred else "%k.scaled",
        means="%means" if centred else "zeroinitializer",
    )  # fmt: skip
    return "\n".join([own, everywhere(lanes), shared_text(minor)])
