"""Schedules: how much of the target sparsity is due at a step, and at which steps masks are updated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.config import Sparsity
from ragjax.errors import InputError

Curve = Callable[[Float[Array, ""]], Float[Array, ""]]
"""From the share of the time between start and stop to the share of the target."""


def constant(time: Float[Array, ""]) -> Float[Array, ""]:
    """All at once.

    Args:
      time: share of the time that has passed, in [0, 1].
    """
    return jnp.ones_like(time)


def polynomial(time: Float[Array, ""], power: float = 3.0) -> Float[Array, ""]:
    """1 - (1 - time)^power: fast while there is much to spare, slow near the end.

    Args:
      time: share of the time that has passed, in [0, 1].
      power: 1 is a straight line, 3 the cubic of the paper.

    Returns:
      Share of the target that is due.

    References:
      Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878.
    """
    return 1 - (1 - time) ** power


def cosine(time: Float[Array, ""]) -> Float[Array, ""]:
    """(1 - cos(pi time)) / 2: slow at both ends.

    Args:
      time: share of the time that has passed, in [0, 1].
    """
    return (1 - jnp.cos(jnp.pi * time)) / 2


def geometric(time: Float[Array, ""], target: float) -> Float[Array, ""]:
    """Every update removes the same share of what is left, as rounds of iterative pruning do.

    Args:
      time: share of the time that has passed, in [0, 1].
      target: sparsity in the end, above 0.

    Returns:
      Share of the target that is due: (1 - (1 - target)^time) / target.
    """
    return (1 - (1 - target) ** time) / target


SPARSITY_SCHEDULES: dict[str, Callable[[Sparsity], Curve]] = {
    "one_shot": lambda config: constant,
    "periodic": lambda config: constant,
    "cubic": lambda config: polynomial,
    "polynomial": lambda config: partial(polynomial, power=config.power),
    "cosine": lambda config: cosine,
    "geometric": lambda config: partial(geometric, target=config.target),
}
"""Curves by their name in the config; each is built from the config."""


@dataclass(frozen=True)
class Schedule:
    """When masks are updated, and how much of the target is due then."""

    curve: Curve
    """Share of the target by share of time."""
    start: int
    """First step that updates masks, counted from 0."""
    stop: int
    """Step at which the target is reached."""
    every: int
    """Steps between updates of the masks."""
    last: int
    """Last step that updates masks: the stop, or later."""

    def time(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Share of the time between start and stop that has passed at `step`, in [0, 1]."""
        step = jnp.asarray(step, jnp.int32)
        passed = (step - self.start).astype(jnp.float32) / max(self.stop - self.start, 1)
        # Compiled, n / n may be 1 less a rounding.
        return jnp.where(step >= self.stop, 1.0, jnp.clip(passed, 0, 1))

    def share(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Share of the target that is due at `step`: 0 before the start, 1 from the stop on."""
        step = jnp.asarray(step, jnp.int32)
        due = self.curve(self.time(step))
        return jnp.where(step < self.start, 0.0, jnp.where(step >= self.stop, 1.0, due))

    def number(self, step: Int[Array, ""] | int) -> Int[Array, ""]:
        """How many times `every` steps have passed since the start, until the stop."""
        return (jnp.minimum(jnp.asarray(step, jnp.int32), self.stop) - self.start) // self.every

    def is_update(
        self, step: Int[Array, ""] | int, since: Int[Array, ""] | int | None = None
    ) -> Bool[Array, ""]:
        """Whether masks are updated at `step`: every so often from the start to the last, and at the stop.

        Args:
          step: the step.
          since: the first of the steps to answer for, where those before `step` were skipped; none: `step`.
        """
        last = jnp.minimum(jnp.asarray(step, jnp.int32), self.last)
        first = jnp.maximum(jnp.asarray(step if since is None else since, jnp.int32), self.start)
        passed = (last - self.start) // self.every > (first - 1 - self.start) // self.every
        return (first <= last) & (passed | ((first <= self.stop) & (self.stop <= last)))


def schedule(config: Sparsity, total_steps: int) -> Schedule:
    """The schedule of a training of `total_steps` steps; masks stand still after its stop.

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
    return Schedule(SPARSITY_SCHEDULES[config.schedule](config), config.start, stop, config.every, stop)
