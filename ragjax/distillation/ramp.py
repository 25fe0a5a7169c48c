"""Numbers that change along a training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ragjax.config.distill import Ramp, values


def at_step(ramp: Ramp, step: Int[Array, ""] | int, steps: int) -> float | Float[Array, ""]:
    """The value of a ramp in one step of a training; a plain number where it is constant.

    Args:
      ramp: one number, or several.
      step: from 0; may be traced.
      steps: of the training: the first step has the first number, the last step the last.

    Example:
      >>> float(at_step((0.0, 1.0, 0.0), 2, 9))
      0.5
    """
    if not isinstance(ramp, tuple):
        return float(ramp)
    if len(set(ramp)) == 1:
        return float(ramp[0])
    place = jnp.asarray(step, jnp.float32) / max(steps - 1, 1)
    corners = jnp.linspace(0.0, 1.0, len(ramp))
    return jnp.interp(jax.lax.clamp(0.0, place, 1.0), corners, jnp.asarray(ramp, jnp.float32))


def number_at(ramp: Ramp, step: int, steps: int) -> float:
    """`at_step` of a step whose number is known, computed on the host, which then waits for no device."""
    corners = values(ramp)
    return float(np.interp(step / max(steps - 1, 1), np.linspace(0.0, 1.0, len(corners)), corners))
