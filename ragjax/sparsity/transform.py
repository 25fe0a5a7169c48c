"""Pruning as a gradient transformation: any optimizer stays sparse, in any trainer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from ragjax.config import Sparsity
from ragjax.sparsity.masks import Masks, apply_masks, masks_from_zeros
from ragjax.sparsity.patterns import PATTERNS
from ragjax.sparsity.schedules import schedule
from ragjax.sparsity.scores import SCORES


class PruneState(NamedTuple):
    """State of `prune`; `optax.tree.get(state, "masks")` reads the masks out of any chain."""

    count: Int[Array, ""]  # type: ignore[assignment]
    """The step that comes next."""
    masks: Masks
    """True where a weight is kept; None where it may not be pruned."""


class SparsifyState(NamedTuple):
    """State of `sparsify`."""

    optimizer: optax.OptState
    """State of the optimizer; 0 wherever it belongs to a masked weight."""
    pruning: PruneState
    """Masks."""


def prune(
    config: Sparsity, *, total_steps: int, seed: int, masks: Masks | None = None
) -> optax.GradientTransformationExtraArgs:
    """Removes weights on a schedule; the last link of a chain.

    Scores the weights the update would lead to, and changes the update so that params + update is
    exactly 0 where a weight is masked. A weight that was removed stays removed. Between updates of
    the masks nothing is scored.

    `update` takes the number of the step as `step`, for a trainer that skips some: what would have been
    removed in those is removed in the next. Without it, its calls are counted.

    Args:
      config: which weights, and when.
      total_steps: steps of the training.
      seed: seed of random scores.
      masks: masks to begin with; none: weights that are exactly 0 are gone already, all others kept.

    Raises:
      InputError: if the schedule does not end within the training; and from `init`, if the names or
        shapes of the parameters do not fit the config.
    """
    when = schedule(config, total_steps)
    score, pattern = SCORES[config.score], PATTERNS[config.pattern](config)

    def pruned(masks: Masks, weights: PyTree, step: Int[Array, ""]) -> Masks:
        scores = score(weights, jax.random.fold_in(jax.random.key(seed), step))
        scores = jax.tree.map(lambda s, mask: jnp.where(mask, s, -jnp.inf), scores, masks)
        return jax.tree.map(jnp.logical_and, masks, pattern(scores, config.target, when.share(step)))

    def init(params: PyTree) -> PruneState:
        chosen = masks_from_zeros(params, config.prunable) if masks is None else jax.tree.map(jnp.copy, masks)
        # Shapes that the pattern refuses are refused before the training begins.
        jax.eval_shape(pruned, chosen, _prunable(params, chosen), jnp.int32(0))
        return PruneState(jnp.int32(0), chosen)

    def update(updates: PyTree, state: PruneState, params: PyTree | None = None, **extra_args: object):
        step = jnp.asarray(extra_args.get("step", state.count), jnp.int32)
        if params is None:
            raise ValueError("prune needs the parameters: call update(updates, state, params)")
        weights = _prunable(optax.apply_updates(params, updates), state.masks)
        masks = jax.lax.cond(
            when.is_update(step, since=state.count),
            lambda: pruned(state.masks, weights, step),
            lambda: state.masks,
        )
        updates = jax.tree.map(
            lambda u, p, mask: u if mask is None else jnp.where(mask, u, -p), updates, params, masks
        )
        return updates, PruneState(optax.safe_increment(step), masks)

    return optax.GradientTransformationExtraArgs(init, update)


def sparsify(
    optimizer: optax.GradientTransformation,
    config: Sparsity,
    *,
    total_steps: int,
    seed: int,
    masks: Masks | None = None,
) -> optax.GradientTransformation:
    """The optimizer, followed by `prune`, and blind to the weights that are gone.

    The gradient of a masked weight is 0 before the optimizer sees it (it counts in no norm), and
    so is everything the optimizer remembers of it, from the step on at which it is removed.

    Args:
      optimizer: any gradient transformation.
      config: which weights, and when; a target of 0 leaves the optimizer as it is.
      total_steps: steps of the training.
      seed: seed of random scores.
      masks: masks to begin with, kept also at a target of 0; none: weights that are exactly 0 are gone
        already, all others kept.

    Raises:
      InputError: as `prune`.
    """
    if not config.target and masks is None:
        return optimizer
    inner = optax.with_extra_args_support(optimizer)
    pruning = prune(config, total_steps=total_steps, seed=seed, masks=masks)

    def init(params: PyTree) -> SparsifyState:
        return SparsifyState(inner.init(params), pruning.init(params))

    def update(updates: PyTree, state: SparsifyState, params: PyTree | None = None, **extra_args: object):
        updates = apply_masks(updates, state.pruning.masks)
        updates, memory = inner.update(updates, state.optimizer, params, **extra_args)
        updates, pruned = pruning.update(updates, state.pruning, params, **extra_args)
        return updates, SparsifyState(zero_where_masked(memory, pruned.masks), pruned)

    return optax.GradientTransformationExtraArgs(init, update)


def zero_where_masked(state: optax.OptState, masks: Masks) -> optax.OptState:
    """An optimizer state whose moments are 0 where their weight is masked.

    Args:
      state: any tree; arrays that lie under a parameter's path and have its shape belong to it.
        Moments of other shapes, as Adafactor's factored ones, are left.
      masks: the masks.
    """
    owners = dict(jax.tree_util.tree_leaves_with_path(masks, is_leaf=lambda leaf: leaf is None))

    def zero(path: tuple, leaf: Array) -> Array:
        owner = next((path[i:] for i in range(len(path)) if path[i:] in owners), None)
        mask = None if owner is None else owners[owner]
        if mask is None or mask.shape != jnp.shape(leaf):
            return leaf
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(zero, state)


def _prunable(tree: PyTree, masks: Masks) -> PyTree:
    return jax.tree.map(lambda leaf, mask: None if mask is None else leaf, tree, masks)
