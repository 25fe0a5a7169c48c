"""GPTQ: weights are rounded input by input, and the inputs that follow make up for it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.quantization.grid import Grid, from_codes, grid, to_codes
from ragjax.quantization.scheme import Scheme
from ragjax.sparsity.calibrated.cholesky import factorize
from ragjax.sparsity.calibrated.column_sweep import Decide, column_sweep


class OnGrid(NamedTuple):
    """A kernel whose every weight is a point of its grid."""

    kernel: Float[Array, "in out"]
    grid: Grid
    dampening: Float[Array, ""]
    """Share of the mean diagonal of X'X that was added to it in the end; not finite: it had no factor."""


def gptq(
    kernel: Float[Array, "in out"],
    gram: Float[Array, "in in"],
    scheme: Scheme,
    *,
    dampening: float = 0.01,
    order: bool = False,
) -> OnGrid:
    """Rounds a kernel so that its outputs change little, not its weights.

    Where a group of inputs begins, its grid is that of its weights as the inputs before it left them. Inputs
    visited in `order` belong to groups far apart: grids are then those of the weights as they were. A weight
    that is 0 stays 0, and the others make up for what was to be added to it. An output for which the sweep
    comes out no better than rounding to the nearest is rounded to the nearest; so is all, where the gram is
    not finite. Inputs that were 0 at every token are rounded to the nearest (the paper's program sets their
    weights to 0).

    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
    (2022), https://arxiv.org/abs/2210.17323, algorithm 1.

    Args:
      kernel: the weights; outputs of several matrices that read the same inputs may lie side by side.
      gram: X'X of their inputs, in any unit.
      scheme: the grid; its groups divide the inputs.
      dampening: the ridge, as a share of the mean diagonal; more is tried where it is not enough.
      order: whether inputs are visited by how large they are, the largest first, not as they lie.
    """
    weights = kernel.astype(jnp.float32)
    inputs, kept = len(weights), weights != 0
    group, alone = scheme.group or inputs, replace(scheme, group=0)
    nearest = grid(weights, scheme)
    points = from_codes(to_codes(weights, nearest, scheme), nearest, scheme)

    def on_point(weight, choice):
        kept, row = choice
        row = jax.tree.map(lambda x: x[None], row)
        point = from_codes(to_codes(weight[None], row, alone), row, alone)[0]
        return jnp.where(kept, point, 0.0)

    if order or group == inputs:
        visited = jnp.argsort(-jnp.diagonal(gram)) if order else jnp.arange(inputs)
        back = jnp.argsort(visited)
        factored = factorize(gram[visited][:, visited], dampening)
        rows = jax.tree.map(lambda x: x[visited // group], nearest)
        settled, _ = column_sweep(
            weights[visited],
            factored.upper,
            Decide(lambda weights, scale, known: known, on_point),
            known=(kept[visited], rows),
        )
        swept = OnGrid(settled[back], nearest, factored.dampening)
    else:

        def begin(weights, scale, kept):
            row = grid(jnp.where(kept, weights, 0.0), alone)
            return kept, jax.tree.map(lambda x: jnp.broadcast_to(x, weights.shape), row)

        factored = factorize(gram, dampening)
        settled, (_, rows) = column_sweep(
            weights, factored.upper, Decide(begin, on_point), every=group, known=kept
        )
        swept = OnGrid(settled, jax.tree.map(lambda x: x[::group], rows), factored.dampening)

    better = _loss(weights - swept.kernel, gram) < _loss(weights - points, gram)
    return OnGrid(
        jnp.where(better, swept.kernel, points),
        jax.tree.map(lambda x, y: jnp.where(better, x, y), swept.grid, nearest),
        swept.dampening,
    )


def _loss(change: Float[Array, "in out"], gram: Float[Array, "in in"]) -> Float[Array, " out"]:
    """||X D||^2 of each output."""
    return jnp.sum(change * jnp.matmul(gram, change, precision=jax.lax.Precision.HIGHEST), 0)
