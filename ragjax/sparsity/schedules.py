"""Schedules: how much of the target sparsity is due at a step, and at which steps masks are updated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.config import Sparsity
from ragjax.errors import InputError

Curve = Callable[[Float[Array, ""]], Float[Array, ""]]
"""From the share of the time between start and stop to the share of the target."""


def one_shot(time: Float[Array, ""]) -> Float[Array, ""]:
    """All at once."""
    return jnp.ones_like(time)


def cubic(time: Float[Array, ""]) -> Float[Array, ""]:
    """1 - (1 - time)^3: fast while there is much to spare, slow near the end.

    Args:
      time: share of the time that has passed, in [0, 1].

    Returns:
      Share of the target that is due.

    References:
      Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878.
    """
    return 1 - (1 - time) ** 3


SPARSITY_SCHEDULES: dict[str, Curve] = {"one_shot": one_shot, "cubic": cubic}
"""Curves by their name in the config."""


@dataclass(frozen=True)
class Schedule:
    """When masks are updated, and how much of the target is due then."""

    curve: Curve
    """Share of the target by share of time."""
    start: int
    """First step that prunes, counted from 0."""
    stop: int
    """Step at which the target is reached; masks stay as they are after it."""
    every: int
    """Steps between updates of the masks."""

    def share(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Share of the target that is due at `step`: 0 before the start, 1 from the stop on."""
        step = jnp.asarray(step, jnp.int32)
        time = (step - self.start).astype(jnp.float32) / max(self.stop - self.start, 1)
        due = self.curve(jnp.clip(time, 0, 1))
        return jnp.where(step < self.start, 0.0, jnp.where(step >= self.stop, 1.0, due))

    def is_update(
        self, step: Int[Array, ""] | int, since: Int[Array, ""] | int | None = None
    ) -> Bool[Array, ""]:
        """Whether masks are updated at `step`: every so often from the start, and at the stop.

        Args:
          step: the step.
          since: the first of the steps to answer for, where those before `step` were skipped; none: `step`.
        """
        last = jnp.minimum(jnp.asarray(step, jnp.int32), self.stop)
        first = jnp.maximum(jnp.asarray(step if since is None else since, jnp.int32), self.start)
        passed = (last - self.start) // self.every > (first - 1 - self.start) // self.every
        return (first <= last) & (passed | (last == self.stop))


def schedule(config: Sparsity, total_steps: int) -> Schedule:
    """The schedule of a training of `total_steps` steps.

    Args:
      config: names the curve; one-shot pruning happens at its start and has no other update.
      total_steps: steps of the training.

    Raises:
      InputError: if the training ends before the target is reached.
    """
    stop = config.stop
    if config.schedule == "one_shot":
        stop = config.start
    elif stop is None:
        stop = max(config.start, total_steps // 2)
    if stop >= total_steps:
        raise InputError(
            f"sparsity: the target {config.target:g} would be reached at step {stop}, but the training "
            f"has {total_steps} steps, counted from 0: prune earlier, or train longer"
        )
    return Schedule(SPARSITY_SCHEDULES[config.schedule], config.start, stop, config.every)
