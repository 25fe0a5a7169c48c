"""All that a training carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ragjax.models.decoder import Params
from ragjax.parallel.rules import place, shardings
from ragjax.training.replay import Memory


class TrainState(NamedTuple):
    """Parameters, optimizer state (masks included) and counters; donated to every step."""

    step: Int[Array, ""]
    """Steps taken, skipped ones included."""
    params: Params
    opt_state: Any
    skipped: Int[Array, ""]
    """Steps skipped because a gradient was not finite."""
    bad_in_a_row: Int[Array, ""]
    """Of these, the ones since the last good step."""
    memory: Memory | None = None
    """What is remembered of the student's own writing; none: it writes nothing."""


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero)


def init_state(
    params: Params, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """The state before the first step, split over the mesh; `params` are copied, never donated."""

    def init(params):
        return initial_state(params, optimizer)

    placed = place(params, mesh)
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init, placed), mesh))(placed)


def abstract_state(state: TrainState) -> TrainState:
    """Shapes, types and shardings of `state`, as a template for restoring."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
