"""SparseGPT: weights go where the others can best make up for them, and the others do so at once."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ragjax.sparsity.calibrated.cholesky import factorize
from ragjax.sparsity.calibrated.column_sweep import Decide, column_sweep
from ragjax.sparsity.patterns import Pattern


class Repaired(NamedTuple):
    """A pruned kernel whose weights that stay were changed to make up for those that go."""

    kernel: Float[Array, "*matrices in out"]
    """0 where the mask is False."""
    mask: Bool[Array, "*matrices in out"]
    """True at the weights that stay."""
    dampening: Float[Array, "*matrices"]
    """Share of the mean diagonal of X'X that was added to it in the end. Not finite where no share made the
    solution finite: the kernel is then not to be used."""


def sparsegpt(
    kernel: Float[Array, "*matrices in out"],
    gram: Float[Array, "in in"],
    pattern: Pattern,
    sparsity: float | Float[Array, "*#matrices"],
    *,
    every: int = 128,
    dampening: float = 0.01,
) -> Repaired:
    """Prunes matrices that read the same inputs, and lets the weights that stay make up for it.

    For groups of inputs, in their order, the weights with the least w^2 / U_jj^2 go, with inv(H) = U'U: those
    whose loss the later inputs can best make up for. Frantar & Alistarh, "SparseGPT: Massive Language Models
    Can Be Accurately Pruned in One-Shot" (2023), algorithm 1.

    Args:
      kernel: the weights.
      gram: X'X of their inputs, in any unit.
      pattern: chooses the mask of each group by its scores [*matrices, every, out].
      sparsity: of each group; may be traced.
      every: how many inputs a mask is chosen for at once: m for n of m, a multiple of the height of blocks.
      dampening: the ridge, as a share of the mean diagonal; more is tried where it is not enough.

    Returns:
      The kernel in its own type, its mask, and the dampening.
    """
    factored = factorize(gram, dampening)
    weights = jnp.where(factored.dead[:, None], 0.0, kernel.astype(jnp.float32))

    def choose(weights, scale, _):
        scores = jnp.square(jnp.moveaxis(weights, 0, -2) / scale[:, None])
        return jnp.moveaxis(pattern(scores, sparsity, 1.0), -2, 0)

    decide = Decide(choose, lambda weight, keep: jnp.where(keep, weight, 0.0))
    settled, mask = column_sweep(weights, factored.upper, decide, every=every)
    return Repaired(
        settled.astype(kernel.dtype),
        jnp.moveaxis(mask, 0, -2),
        jnp.broadcast_to(factored.dampening, kernel.shape[:-2]),
    )
