"""LayerNorm and RMSNorm of a few rows, as a decoding step has them.

XLA's CPU backend makes four programs of a norm, of which calling them takes most of the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from string import Template

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.kernels.calls import custom_call
from ragjax.kernels.machine import kernels_serve, vectors
from ragjax.kernels.vectors_text import everywhere

_MOST = 1 << 15
"""Values above which XLA's programs are worth their calls, and one thread is not enough."""


def norms_serve(rows: int, width: int) -> bool:
    """Whether there is such a kernel for so many rows of so many features."""
    if not kernels_serve() or any(map(jax.export.is_symbolic_dim, (rows, width))):
        return False
    return 0 < rows * width <= _MOST and width % vectors().lanes == 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowNorm:
    """LayerNorm of rows, or RMSNorm where there is no bias."""

    scale: Float[Array, " width"]
    """Multiplies each feature."""
    bias: Float[Array, " width"] | None
    """Is added to each feature; none: the mean is not taken off either."""
    epsilon: float = field(metadata={"static": True})
    """Added to the variance, or to the mean square."""

    @property
    def kind(self) -> str:
        """Of which machine code differs: "rms" or "layer"."""
        return "rms" if self.bias is None else "layer"

    def operands(self, width: int) -> list[Array]:
        """What machine code takes, of rows so wide: the scale, epsilon, and the bias if there is one."""
        given = [self.scale] if self.bias is None else [self.scale, self.bias]
        # Machine code takes what it is given at its word.
        assert all((each.shape, each.dtype) == ((width,), jnp.float32) for each in given)
        return [given[0], jnp.float32(self.epsilon), *given[1:]]


def norm(x: Float[Array, "rows width"], how: RowNorm) -> Float[Array, "rows width"]:
    """The norm of each row.

    Args:
      x: float32.
      how: what is done to a row.
    """
    rows, width = x.shape
    assert norms_serve(rows, width)
    assert x.dtype == jnp.float32
    lanes = vectors().lanes
    name = custom_call(f"ragjax_norm_{how.kind}_{lanes}", partial(_text, lanes, how.kind))
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(x.shape, jnp.float32), vmap_method="sequential")
    return call(x, *how.operands(width))


def _text(lanes: int, kind: str) -> str:
    """A kernel that makes norms."""
    own = Template(Path(__file__).with_name("norm.ll").read_text()).substitute(
        # What begins with a semicolon is a comment.
        centred="" if kind == "layer" else "; ",
    )  # fmt: skip
    return "\n".join([own, norm_row(lanes, kind)])


def norm_row(lanes: int, kind: str) -> str:
    """The function `@norm.row`: from, to, width of a row, scale, where epsilon stands, bias.

    Args:
      lanes: values in a vector; a row is so many times a whole number wide.
      kind: "rms" or "layer".
    """
    centred = kind == "layer"
    own = Template(Path(__file__).with_name("norm_row.ll").read_text()).substitute(
        lanes=lanes, vector=f"<{lanes} x float>",
        # What begins with a semicolon is a comment.
        centred="" if centred else "; ", made="%k.made" if centred else "%k.scaled",
        means="%means" if centred else "zeroinitializer",
    )  # fmt: skip
    return "\n".join([own, everywhere(lanes)])
