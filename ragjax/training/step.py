"""The train step: teacher, student, losses, clipping, optimizer and masks in one XLA program."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective, Terms
from ragjax.models.decoder import Params
from ragjax.training.state import TrainState


class Metrics(NamedTuple):
    """What one step tells, as arrays that are still on the device."""

    loss: Float[Array, ""]
    terms: Terms
    """The losses by name, before their weights."""
    gradient_norm: Float[Array, ""]
    """Global norm before clipping."""
    tokens: Float[Array, ""]
    """Real tokens in the step, over the whole mesh."""
    skipped: Int[Array, ""]
    bad_in_a_row: Int[Array, ""]


Step = Callable[[TrainState, tuple[Params, ...], Batch], tuple[TrainState, Metrics]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    clip: float = 0.0,
    seed: int = 0,
) -> Step:
    """Compiles one step of training; its state is donated.

    A step whose loss or gradient is not finite leaves parameters and optimizer state as they were and
    is counted.

    Args:
      objective: the loss.
      optimizer: the update rule, pruning included; told the number of the step as `step`.
      clip: largest global norm of the gradient; 0: no clipping.
      seed: of dropout; each step draws from (seed, step).

    Returns:
      `step(state, teachers, batch) -> (state, metrics)`, with the parameters of each teacher. The arrays of
      `batch` are [microbatches, batch, seq]; the gradient is that of the mean over all real tokens.
    """
    dropout = any(
        (
            objective.student.embedding_dropout,
            objective.student.attention_dropout,
            objective.student.residual_dropout,
        )
    )

    rule = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, teachers: tuple[Params, ...], batch: Batch) -> tuple[TrainState, Metrics]:
        tokens = jnp.sum(batch.weights, dtype=jnp.float32)
        key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None

        def microbatch(number, part: Batch):
            weights = part.weights / jnp.maximum(tokens, 1)
            if part.factors is not None:
                weights = weights * part.factors
            own = None if key is None else jax.random.fold_in(key, number)
            return jax.value_and_grad(objective, has_aux=True)(
                state.params, teachers, part, weights, own, state.step
            )

        (loss, terms), gradients = _summed(microbatch, batch)
        norm = optax.tree.norm(gradients)
        good = jnp.isfinite(norm) & jnp.isfinite(loss)

        def update(params, opt_state):
            clipped = gradients
            if clip:
                scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
                clipped = jax.tree.map(lambda g: g * scale, gradients)
            updates, opt_state = rule.update(clipped, opt_state, params, step=state.step)
            return optax.apply_updates(params, updates), opt_state

        # A branch updates in place; choosing between new and old would hold both.
        params, opt_state = jax.lax.cond(good, update, lambda *old: old, state.params, state.opt_state)
        bad = jnp.where(good, 0, state.bad_in_a_row + 1)
        new = state._replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + (1 - good.astype(jnp.int32)),
            bad_in_a_row=bad,
        )
        return new, Metrics(loss, terms, norm, tokens, new.skipped, bad)

    return jax.jit(step, donate_argnums=0)


def _summed(microbatch: Callable, batch: Batch):
    """Sums losses and gradients over the leading axis of `batch`, one microbatch at a time."""
    count = batch.tokens.shape[0]
    if count == 1:
        return microbatch(0, jax.tree.map(lambda x: x[0], batch))

    def body(total, numbered):
        return jax.tree.map(jnp.add, total, microbatch(*numbered)), None

    shapes = jax.eval_shape(microbatch, 0, jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(count), batch))
    return total
