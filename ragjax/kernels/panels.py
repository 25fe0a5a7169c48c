"""Products of few rows with a matrix, as a decoding step has them: bound by reading the matrix.

XLA's CPU backend reads it at half the memory's rate or less where there are several rows. Here it stands in
panels, some columns each in one piece, so that a core reads straight ahead while the sums of up to eight rows
stay in its registers. That is how a BLAS packs a factor (Goto and van de Geijn, "Anatomy of High-Performance
Matrix Multiplication", 2008); here it is packed once.
"""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.kernels.machine import interface, register, vectors
from ragjax.kernels.panels_text import panel_width, panels_text

_COMPILED: list[str] = []
_COMPILING = threading.Lock()


def panels_serve() -> bool:
    """Whether there are panels: on CPU, with `llvmlite`, and with an interface of XLA's that is known."""
    return jax.default_backend() == "cpu" and interface() is not None


def in_panels(kernel: Float[Array, "in out"]) -> Float[Array, "panels in width"]:
    """A matrix in panels as wide as this processor likes them, the last one filled up with zeros."""
    inputs, outputs = kernel.shape
    width = panel_width(vectors())
    padded = jnp.pad(kernel, ((0, 0), (0, -outputs % width)))
    return padded.reshape(inputs, padded.shape[1] // width, width).transpose(1, 0, 2)


def out_of_panels(panels: Float[Array, "panels in width"], outputs: int) -> Float[Array, "in out"]:
    """The matrix of so many outputs that stands in panels."""
    count, inputs, width = panels.shape
    return panels.transpose(1, 0, 2).reshape(inputs, count * width)[:, :outputs]


def multiply_panels(
    x: Float[Array, "rows in"], panels: Float[Array, "panels in width"]
) -> Float[Array, "rows padded"]:
    """`x @ kernel` in float32, the columns that fill up the last panel included.

    A sum goes along the inputs one by one, however many rows there are: a row's result does not depend on
    the others.

    Args:
      x: float32.
      panels: from `in_panels`, float32.
    """
    rows, (count, inputs, width) = x.shape[0], panels.shape
    out = jax.ShapeDtypeStruct((rows, count * width), jnp.float32)
    if not rows * count * inputs:
        return jnp.zeros(out.shape, out.dtype)
    return jax.ffi.ffi_call(_target(), out)(x, panels)


def _target() -> str:
    """The custom call, which is compiled when it is first asked for."""
    minor = interface()
    assert minor is not None
    with _COMPILING:
        if not _COMPILED:
            register("ragjax_panels", panels_text(vectors(), minor))
            _COMPILED.append("ragjax_panels")
        return _COMPILED[0]
