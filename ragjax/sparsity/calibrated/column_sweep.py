"""The sweep of SparseGPT and GPTQ: input by input a decision is made, and the inputs after it make up for it.

Frantar & Alistarh, "SparseGPT" (2023); Frantar et al., "GPTQ" (2022). Their column is our row: kernels are
[in, out]. With inv(H) = U'U they settle input j at q_j, and then take U[j, k] (w_j - q_j) / U[j, j] from
every later input k. After input j the weights w of the later inputs so minimise the change of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

_BLOCK = 128
"""Inputs whose updates reach the later ones together, by one matrix product."""

Choice: TypeAlias = PyTree[Array]
"""What is known of the decisions before they are made: arrays with an axis of inputs in front."""


class Decide(NamedTuple):
    """How inputs are settled: to prune is one way, to round another."""

    choose: Callable[[Float[Array, "group *matrices out"], Float[Array, " group"], Choice], Choice]
    """From the weights of a group of inputs, as all inputs before the group left them, diag(U), and what was
    known of these inputs from the start, to what they are settled by: masks, or scales of a grid."""
    settle: Callable[[Float[Array, "*matrices out"], Choice], Float[Array, "*matrices out"]]
    """From the weights of one input, as those before it left them, and its choice, to their last values."""


def column_sweep(
    kernel: Float[Array, "*matrices in out"],
    upper: Float[Array, "in in"],
    decide: Decide,
    *,
    every: int = _BLOCK,
    known: Choice = (),
) -> tuple[Float[Array, "*matrices in out"], Choice]:
    """Settles one input after the other, and makes up for it in the inputs that follow.

    Inputs are taken in blocks. What the blocks before it ask of a block follows from R alone: with D the
    change of their weights, the block's move by inv(R_bb)' R_ab' D. So the inverse of no large matrix is
    needed. Matrices that read the same inputs share R and every step.

    Args:
      kernel: the weights.
      upper: R of the damped Hessian H = R R', upper triangular (`factorize`).
      decide: how the inputs of a group and each of them are settled.
      every: inputs of a group; the last group may be smaller.
      known: what a choice may look at besides, with an axis of inputs in front.

    Returns:
      The settled kernel, and the choices with an axis of inputs in front.
    """
    weights = jnp.moveaxis(kernel, -2, 0)
    block = every * max(1, _BLOCK // every)

    def step(deltas, start, size):
        columns = _part(upper, start, size, axis=1)
        inverse = jax.lax.linalg.triangular_solve(
            _part(columns, start, size), jnp.eye(size, dtype=upper.dtype), left_side=True, lower=False
        )
        given = _part(weights, start, size)
        moved = given + _times(inverse, _times(columns, deltas))
        settled, _, choice = _settle_groups(moved, inverse, _parts(known, start, size), decide, every)
        deltas = jax.lax.dynamic_update_slice_in_dim(deltas, given - settled, start, 0)
        return deltas, (settled, choice)

    _, (settled, choice) = _in_turn(step, jnp.zeros_like(weights), block)
    return jnp.moveaxis(settled, 0, -2), choice


def _settle_groups(weights, inverse, known, decide, every):
    """Settles the inputs of a block, group by group, by the block of U on its diagonal.

    Returns:
      The settled weights, their errors (w - q) / U[j, j], and the choices.
    """
    if weights.shape[0] <= every:
        return _settle_group(weights, inverse, known, decide)

    def step(errors, start, size):
        columns = _part(inverse, start, size, axis=1)
        moved = _part(weights, start, size) - _times(columns, errors)
        settled, found, choice = _settle_groups(
            moved, _part(columns, start, size), _parts(known, start, size), decide, every
        )
        return jax.lax.dynamic_update_slice_in_dim(errors, found, start, 0), (settled, choice)

    errors, (settled, choice) = _in_turn(step, jnp.zeros_like(weights), every)
    return settled, errors, choice


def _settle_group(weights, inverse, known, decide):
    choice = decide.choose(weights, jnp.diagonal(inverse), known)

    def step(errors, j):
        # One pass that reads the errors so far; an update of all later inputs would read and write those.
        weight = weights[j] - _times(inverse[:, j], errors)
        settled = decide.settle(weight, jax.tree.map(lambda c: c[j], choice))
        return errors.at[j].set((weight - settled) / inverse[j, j]), settled

    errors, settled = jax.lax.scan(step, jnp.zeros_like(weights), jnp.arange(weights.shape[0]))
    return settled, errors, choice


def _in_turn(step, carry, part):
    """Runs step(carry, start, size) over parts of the carry's inputs, the last of which may be smaller."""
    full, rest = divmod(carry.shape[0], part)
    told = []
    if full:
        carry, found = jax.lax.scan(lambda c, i: step(c, i * part, part), carry, jnp.arange(full))
        told.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found))
    if rest:
        carry, found = step(carry, full * part, rest)
        told.append(found)
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x) if x[1:] else x[0], *told)


def _part(x: Array, start: Array | int, size: int, axis: int = 0) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _parts(tree: Choice, start: Array | int, size: int) -> Choice:
    return jax.tree.map(lambda x: _part(x, start, size), tree)


def _times(matrix: Float[Array, "n *m"], x: Float[Array, "n *rest"]) -> Float[Array, "*m *rest"]:
    return jnp.tensordot(matrix, x, (0, 0), precision=jax.lax.Precision.HIGHEST)
