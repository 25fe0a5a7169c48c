"""Rewinding: after each round of pruning the weights that are left go back to what they were early on."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ragjax.config import Sparsity
from ragjax.sparsity.hard import SparsifyState, hard
from ragjax.sparsity.masks import Masks, apply_masks
from ragjax.sparsity.memory import renewed


class RewindState(NamedTuple):
    """State of `rewind`."""

    sparse: SparsifyState
    """State of the pruned optimizer."""
    snapshot: PyTree
    """All parameters as they were before the step `rewind_to`."""


def rewind(
    optimizer: optax.GradientTransformation,
    config: Sparsity,
    *,
    total_steps: int,
    seed: int,
    masks: Masks | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Iterative magnitude pruning: `hard`, and a snapshot that all parameters go back to when masks shrink.

    What the optimizer remembers of the parameters begins anew, its counters go on: a learning rate that
    goes back too is a matter of its schedule. An update that removes nothing rewinds nothing.

    Args:
      optimizer: any gradient transformation.
      config: which weights, and when; `every` is the length of a round.
      total_steps: steps of the training.
      seed: seed of random scores.
      masks: masks to begin with; none: weights that are exactly 0 are gone already.

    References:
      Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
      https://arxiv.org/abs/1912.05671.
    """
    sparse = hard(optimizer, config, total_steps=total_steps, seed=seed, masks=masks)

    def init(params: PyTree) -> RewindState:
        return RewindState(sparse.init(params), jax.tree.map(jnp.copy, params))

    def update(updates: PyTree, state: RewindState, params: PyTree | None = None, **extra_args):
        before = state.sparse.pruning
        step = jnp.asarray(extra_args.get("step", before.count), jnp.int32)
        updates, new = sparse.update(updates, state.sparse, params, **extra_args)
        taken = (before.count <= config.rewind_to) & (config.rewind_to <= step)
        snapshot = jax.tree.map(lambda old, p: jnp.where(taken, p, old), state.snapshot, params)
        masks = new.pruning.masks

        def back():
            goal = apply_masks(snapshot, masks)
            memory = renewed(new.optimizer, optimizer.init(goal), goal)
            return jax.tree.map(jnp.subtract, goal, params), memory

        shrunk = jax.tree.map(lambda a, b: jnp.any(a != b), masks, before.masks)
        updates, memory = jax.lax.cond(
            jax.tree.reduce(jnp.logical_or, shrunk), back, lambda: (updates, new.optimizer)
        )
        return updates, RewindState(SparsifyState(memory, new.pruning), snapshot)

    return optax.GradientTransformationExtraArgs(init, update)
