"""Rules: which weights are kept next, given those kept so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ragjax.config import Sparsity
from ragjax.sparsity.budgets import BUDGETS
from ragjax.sparsity.masks import Masks
from ragjax.sparsity.patterns import PATTERNS, Share
from ragjax.sparsity.scores import SCORES, Evidence, Scores, random
from ragjax.sparsity.threshold import lowest


class Turn(NamedTuple):
    """One update of the masks: all that a rule may look at."""

    masks: Masks
    """The masks so far."""
    seen: Evidence
    """Weights, which are 0 where masked, their dense gradients, and a key of this turn."""
    share: Float[Array, ""]
    """Share of the target that is due."""
    time: Float[Array, ""]
    """Share of the time between start and stop that has passed."""
    number: Int[Array, ""]
    """Number of the turn, counted from 0."""


class Rule(NamedTuple):
    """Which weights are kept next."""

    choose: Callable[[Sparsity, Turn], Masks]
    """From the config and a turn to the next masks."""
    regrows: bool = True
    """Whether a weight that is gone may come back; where none does, the masks before need not be kept."""


def strongest(config: Sparsity, scores: Scores, share: Share = 1.0) -> Masks:
    """Masks that keep the highest scores, in the pattern and by the budget of the config.

    Args:
      config: pattern, budget and target.
      scores: arrays [..., in, out].
      share: how much of the target is due.
    """
    return PATTERNS[config.pattern](config)(scores, BUDGETS[config.budget](config.target, scores), share)


def random_masks(config: Sparsity, weights: PyTree, key: Array) -> Masks:
    """Masks at the target that keep weights by chance.

    Args:
      config: pattern, budget and target.
      weights: the prunable weights.
      key: random key.
    """
    return strongest(config, random(Evidence(weights, key)))


def shrink(config: Sparsity, turn: Turn) -> Masks:
    """Removes the lowest scores of what is left; nothing comes back.

    Args:
      config: score, pattern, budget and target.
      turn: its weights, evidence and share are used.

    References:
      Zhu and Gupta, "To prune, or not to prune", https://arxiv.org/abs/1710.01878.
    """
    return jax.tree.map(jnp.logical_and, turn.masks, strongest(config, _of_kept(config, turn), turn.share))


def alternate(config: Sparsity, turn: Turn) -> Masks:
    """AC/DC: the highest scores in every even turn and at the stop, all weights in every odd one.

    Args:
      config: score, pattern, budget and target; `every` is the length of a phase.
      turn: its weights, evidence, number and time are used.

    References:
      Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
      https://arxiv.org/abs/2106.12379.
    """
    compressed = strongest(config, _of_kept(config, turn))
    dense = (turn.number % 2 == 1) & (turn.time < 1)
    return jax.tree.map(lambda mask: mask | dense, compressed)


def regrow_random(config: Sparsity, turn: Turn) -> Masks:
    """SET: drops the lowest scores of each matrix and grows as many weights by chance.

    Args:
      config: score and `fraction`.
      turn: its masks, evidence and time are used.

    References:
      Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity",
      https://arxiv.org/abs/1707.04780.
    """
    return _regrow(config, turn, random(turn.seen))


def regrow_by_gradient(config: Sparsity, turn: Turn) -> Masks:
    """RigL: drops the lowest scores of each matrix and grows as many weights of the largest gradient.

    Args:
      config: score and `fraction`.
      turn: its masks, evidence and time are used.

    References:
      Evci et al., "Rigging the Lottery: Making All Tickets Winners", https://arxiv.org/abs/1911.11134.
    """
    return _regrow(config, turn, jax.tree.map(jnp.abs, turn.seen.gradients))


def _regrow(config: Sparsity, turn: Turn, promise: Scores) -> Masks:
    """Drops a share of each matrix's kept weights and grows as many of the highest promise.

    The share falls from `fraction` to 0 by a cosine. All but the survivors may grow, as in the paper: a
    weight that was dropped in this turn may stay, and then keeps its value.
    """
    fraction = config.fraction * (1 + jnp.cos(jnp.pi * turn.time)) / 2

    def change(mask, score, promise):
        kept = jnp.sum(mask, (-2, -1), dtype=jnp.uint32, keepdims=True)
        count = jnp.floor(kept.astype(jnp.float32) * fraction).astype(jnp.uint32)
        survivors = mask & ~lowest([jnp.where(mask, score, jnp.inf)], count, (-2, -1))[0]
        return survivors | lowest([jnp.where(survivors, jnp.inf, -promise)], count, (-2, -1))[0]

    return jax.tree.map(change, turn.masks, SCORES[config.score].rank(turn.seen), promise)


def _of_kept(config: Sparsity, turn: Turn) -> Scores:
    """Scores that are -inf where a weight is gone."""
    scores = SCORES[config.score].rank(turn.seen)
    return jax.tree.map(lambda s, mask: jnp.where(mask, s, -jnp.inf), scores, turn.masks)


SHRINK = Rule(shrink, regrows=False)
"""Removes the lowest scores of what is left."""
