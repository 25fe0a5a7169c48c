"""Latent weights: the optimizer trains dense weights, the parameters are those of them that are kept.

The parameters of the train state are the dense weights times their masks, always: what the network
computes with, what is evaluated and saved. The gradient taken there is the straight-through gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ragjax.config import Sparsity
from ragjax.sparsity.by_layer import by_layer
from ragjax.sparsity.masks import Masks, dense_masks, masked_part, renewed_where
from ragjax.sparsity.rules import strongest
from ragjax.sparsity.schedules import schedule
from ragjax.sparsity.scores import SCORES, Evidence

Weights = Float[Array, "... in out"]


class Latent(NamedTuple):
    """What tells one latent method from another, for each matrix on its own."""

    gradient: Callable[[Sparsity, Weights, Weights, Bool[Array, "... in out"]], Weights]
    """From the gradient at the masked weights, the dense weights and the masks to what the optimizer sees."""
    remember: Callable[[Weights, Weights, Weights], Weights] | None = None
    """From scores, dense weights and gradient to the next scores, 0 at first; none: those of the config."""


def straight_through(
    config: Sparsity, gradient: Weights, dense: Weights, mask: Bool[Array, "... in out"]
) -> Weights:
    """STE: the gradient as it is, for masked weights too.

    References:
      Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons",
      https://arxiv.org/abs/1308.3432.
    """
    return gradient


def drawn_to_zero(
    config: Sparsity, gradient: Weights, dense: Weights, mask: Bool[Array, "... in out"]
) -> Weights:
    """SR-STE: adds decay times the weight where it is masked.

    References:
      Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
      https://arxiv.org/abs/2102.04010.
    """
    return gradient + config.decay * jnp.where(mask, 0, dense)


def of_kept(config: Sparsity, gradient: Weights, dense: Weights, mask: Bool[Array, "... in out"]) -> Weights:
    """Movement: masked weights have no gradient."""
    return jnp.where(mask, gradient, 0)


def movement(scores: Weights, dense: Weights, gradient: Weights) -> Weights:
    """The sum of -w g over the steps: high where a weight moved away from 0.

    References:
      Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", https://arxiv.org/abs/2005.07683.
    """
    return scores - dense * gradient


class LatentState(NamedTuple):
    """State of `latent`; trees over the prunable weights, None elsewhere."""

    optimizer: optax.OptState
    """State of the optimizer, which trains the dense weights."""
    count: Int[Array, ""]  # type: ignore[assignment]
    """The step that comes next."""
    masks: Masks
    """True where a weight is kept."""
    dense: PyTree
    """The dense weights."""
    scores: PyTree
    """What is remembered to rank them; () where nothing is."""


def latent(
    optimizer: optax.GradientTransformation,
    config: Sparsity,
    *,
    total_steps: int,
    seed: int,
    masks: Masks | None = None,
    method: Latent,
) -> optax.GradientTransformationExtraArgs:
    """Trains dense weights behind the parameters, which are those that score highest of them.

    Masks are chosen from all weights every so often from the start on, to the end of the training: a
    weight may come back, with the value it has among the dense ones.

    Args:
      optimizer: any gradient transformation.
      config: which weights, and when.
      total_steps: steps of the training.
      seed: seed of random scores.
      masks: masks to begin with; none: all weights are kept at first.
      method: the gradient the dense weights see, and their scores.

    Raises:
      InputError: if the schedule does not end within the training; and from `init`, if the names or
        shapes of the parameters do not fit the config.
    """
    inner = optax.with_extra_args_support(optimizer)
    when = replace(schedule(config, total_steps), last=total_steps - 1)

    def chosen(scores: PyTree, dense: PyTree, gradients: PyTree, step: Int[Array, ""]) -> Masks:
        share = when.share(step)

        def choose(scores: PyTree, dense: PyTree, gradients: PyTree, key: Key[Array, ""]) -> Masks:
            if method.remember is None:
                scores = SCORES[config.score].rank(Evidence(dense, key, gradients))
            return strongest(config, scores, share)

        key = jax.random.fold_in(jax.random.key(seed), step)
        return by_layer(choose, config, scores, dense, gradients, key=key)

    def init(params: PyTree) -> LatentState:
        first = dense_masks(params, config.prunable) if masks is None else jax.tree.map(jnp.copy, masks)
        dense = jax.tree.map(jnp.copy, masked_part(params, first))
        scores = () if method.remember is None else jax.tree.map(jnp.zeros_like, dense)
        jax.eval_shape(chosen, scores, dense, dense, jnp.int32(0))
        return LatentState(inner.init(params), jnp.int32(0), first, dense, scores)

    def update(updates: PyTree, state: LatentState, params: PyTree | None = None, **extra_args):
        if params is None:
            raise ValueError("latent weights need the parameters: call update(updates, state, params)")
        step = jnp.asarray(extra_args.get("step", state.count), jnp.int32)
        gradients = masked_part(updates, state.masks)
        seen = jax.tree.map(
            lambda g, w, mask: g if mask is None else method.gradient(config, g, w, mask),
            updates, state.dense, state.masks,
        )  # fmt: skip
        behind = jax.tree.map(lambda p, w: p if w is None else w, params, state.dense)
        moved, memory = inner.update(seen, state.optimizer, behind, **extra_args)
        dense = masked_part(optax.apply_updates(behind, moved), state.masks)
        scores = state.scores
        if method.remember is not None:
            scores = jax.tree.map(method.remember, scores, state.dense, gradients)
        masks = renewed_where(
            when.is_update(step, since=state.count),
            lambda _: chosen(scores, dense, gradients, step),
            state.masks,
        )

        # Not the inner update itself: what rounding makes of it here and there would drift apart.
        moved = jax.tree.map(
            lambda u, w, p, mask: u if w is None else jnp.where(mask, w - p, -p),
            moved, dense, params, masks,
        )  # fmt: skip
        return moved, LatentState(memory, optax.safe_increment(step), masks, dense, scores)

    return optax.GradientTransformationExtraArgs(init, update)
