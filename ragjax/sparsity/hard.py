"""Hard pruning: a masked weight is 0, and so is all that the optimizer remembers of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from ragjax.config import Sparsity
from ragjax.sparsity.by_layer import by_layer
from ragjax.sparsity.masks import (
    Masks,
    apply_masks,
    masked_part,
    masks_from_zeros,
    prunable,
    renewed_where,
)
from ragjax.sparsity.memory import zero_where_masked
from ragjax.sparsity.rules import SHRINK, Rule, Turn, random_masks
from ragjax.sparsity.schedules import schedule
from ragjax.sparsity.scores import Evidence

Begin = Callable[[Sparsity, PyTree, Key[Array, ""]], Masks]
"""From the config, all parameters and a random key to the masks before the first step."""


class PruneState(NamedTuple):
    """State of `prune`; `optax.tree.get(state, "masks")` reads the masks out of any chain."""

    count: Int[Array, ""]  # type: ignore[assignment]
    """The step that comes next."""
    masks: Masks
    """True where a weight is kept; None where it may not be pruned."""


class SparsifyState(NamedTuple):
    """State of `hard`."""

    optimizer: optax.OptState
    """State of the optimizer; 0 wherever it belongs to a masked weight."""
    pruning: PruneState
    """Masks."""


def from_zeros(config: Sparsity, params: PyTree, key: Key[Array, ""]) -> Masks:
    """Begins with the weights that are not exactly 0."""
    del key
    return masks_from_zeros(params, config.prunable)


def from_random(config: Sparsity, params: PyTree, key: Key[Array, ""]) -> Masks:
    """Begins with weights drawn by chance, at the target."""
    return random_masks(config, prunable(params, config.prunable), key)


class Masking(NamedTuple):
    """How masks begin and go on."""

    init: Callable[[PyTree], PruneState]
    """From the parameters."""
    advance: Callable[..., PruneState]
    """From a state, the parameters, their gradients if there are any, and the number of the step or none."""
    alive: Callable[[Masks, Masks], Masks]
    """From masks and the masks before to the weights that are kept and were kept before."""


def masking(
    config: Sparsity, *, total_steps: int, seed: int, masks: Masks | None, rule: Rule, begin: Begin
) -> Masking:
    """Masks on a schedule; between their updates nothing is scored.

    Args:
      config: which weights, and when.
      total_steps: steps of the training.
      seed: seed of what is drawn by chance.
      masks: masks to begin with; none: those of `begin`.
      rule: which weights are kept next, seen at the parameters the gradients were taken at.
      begin: the masks before the first step.

    Raises:
      InputError: if the schedule does not end within the training; and from `init`, if the names or
        shapes of the parameters do not fit the config.
    """
    when = schedule(config, total_steps)

    def chosen(masks: Masks, weights: PyTree, gradients: PyTree | None, step: Int[Array, ""]) -> Masks:
        share, time, number = when.share(step), when.time(step), when.number(step)

        def choose(masks: Masks, weights: PyTree, gradients: PyTree | None, key: Key[Array, ""]) -> Masks:
            seen = Evidence(apply_masks(weights, masks), key, gradients)
            return rule.choose(config, Turn(masks, seen, share, time, number))

        key = jax.random.fold_in(jax.random.key(seed), step)
        return by_layer(choose, config, masks, weights, gradients, key=key)

    def init(params: PyTree) -> PruneState:
        if masks is None:
            first = begin(config, params, jax.random.key(seed))
        else:
            first = jax.tree.map(jnp.copy, masks)
        # Shapes that the pattern refuses are refused before the training begins.
        weights = masked_part(params, first)
        jax.eval_shape(chosen, first, weights, weights, jnp.int32(0))
        return PruneState(jnp.int32(0), first)

    def advance(
        state: PruneState, params: PyTree, gradients: PyTree | None, step: Int[Array, ""] | int | None
    ) -> PruneState:
        step = jnp.asarray(state.count if step is None else step, jnp.int32)
        weights = masked_part(params, state.masks)
        slopes = None if gradients is None else masked_part(gradients, state.masks)
        masks = renewed_where(
            when.is_update(step, since=state.count),
            lambda masks: chosen(masks, weights, slopes, step),
            state.masks,
        )
        return PruneState(optax.safe_increment(step), masks)

    def alive(masks: Masks, before: Masks) -> Masks:
        # A weight that has just grown is 0 still.
        return jax.tree.map(jnp.logical_and, masks, before) if rule.regrows else masks

    return Masking(init, advance, alive)


def prune(
    config: Sparsity,
    *,
    total_steps: int,
    seed: int,
    masks: Masks | None = None,
    rule: Rule = SHRINK,
    begin: Begin = from_zeros,
) -> optax.GradientTransformationExtraArgs:
    """Holds the weights to masks that are updated on a schedule; the last link of a chain.

    params + update is exactly 0 where a weight is masked, or was until now. `update` takes the number of
    the step as `step`, for a trainer that skips some: what would have been removed in those is removed in
    the next. Without it, its calls are counted. Rules find the gradients in `gradients`, where given.

    Args:
      config: which weights, and when.
      total_steps: steps of the training.
      seed: seed of what is drawn by chance.
      masks: masks to begin with; none: those of `begin`.
      rule: which weights are kept next.
      begin: the masks before the first step.

    Raises:
      InputError: if the schedule does not end within the training; and from `init`, if the names or
        shapes of the parameters do not fit the config.
    """
    going = masking(config, total_steps=total_steps, seed=seed, masks=masks, rule=rule, begin=begin)

    def update(updates: PyTree, state: PruneState, params: PyTree | None = None, **extra_args):
        if params is None:
            raise ValueError("prune needs the parameters: call update(updates, state, params)")
        new = going.advance(state, params, extra_args.get("gradients"), extra_args.get("step"))
        return led_to_zero(updates, params, going.alive(new.masks, state.masks)), new

    return optax.GradientTransformationExtraArgs(going.init, update)


def hard(
    optimizer: optax.GradientTransformation,
    config: Sparsity,
    *,
    total_steps: int,
    seed: int,
    masks: Masks | None = None,
    rule: Rule = SHRINK,
    begin: Begin = from_zeros,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, held to masks, and blind to the weights that are gone.

    Masks come first: they are chosen where the gradient was taken, dense as it is. Then the gradient of
    a masked weight is 0 before the optimizer sees it (it counts in no norm), and so is everything the
    optimizer remembers of it; the weight is 0 afterwards. A weight that comes back begins at 0 in the
    step after, and nothing is remembered of it.

    Args:
      optimizer: any gradient transformation.
      config: which weights, and when.
      total_steps: steps of the training.
      seed: seed of what is drawn by chance.
      masks: masks to begin with; none: those of `begin`.
      rule: which weights are kept next.
      begin: the masks before the first step.

    Raises:
      InputError: as `prune`.
    """
    inner = optax.with_extra_args_support(optimizer)
    going = masking(config, total_steps=total_steps, seed=seed, masks=masks, rule=rule, begin=begin)

    def init(params: PyTree) -> SparsifyState:
        return SparsifyState(inner.init(params), going.init(params))

    def update(updates: PyTree, state: SparsifyState, params: PyTree | None = None, **extra_args):
        if params is None:
            raise ValueError("sparsify needs the parameters: call update(updates, state, params)")
        pruning = going.advance(state.pruning, params, updates, extra_args.get("step"))
        alive = going.alive(pruning.masks, state.pruning.masks)
        # Before the update and not after it, so that moments are updated where they lie.
        memory = zero_where_masked(state.optimizer, alive)
        moved, memory = inner.update(apply_masks(updates, alive), memory, params, **extra_args)
        return led_to_zero(moved, params, alive), SparsifyState(memory, pruning)

    return optax.GradientTransformationExtraArgs(init, update)


def led_to_zero(updates: PyTree, params: PyTree, masks: Masks) -> PyTree:
    """Updates by which a masked weight becomes exactly 0."""
    return jax.tree.map(
        lambda u, p, mask: u if mask is None else jnp.where(mask, u, -p), updates, params, masks
    )
