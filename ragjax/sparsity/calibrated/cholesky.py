"""The triangular factor of a layer's Hessian by which errors are passed from one input to the next."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_FIRST_RETRY = 1e-6
_TRIES = 9


class Factored(NamedTuple):
    """H = R R' of the damped Hessian H, with R upper triangular."""

    upper: Float[Array, "in in"]
    """R. The Cholesky factor U of inv(H) = U'U, which SparseGPT and GPTQ speak of, is its inverse."""
    dead: Bool[Array, " in"]
    """Inputs that were 0 at every token: whatever their weights are, the output is the same."""
    dampening: Float[Array, ""]
    """Share of the mean diagonal that was added to the diagonal; infinite where no share was enough."""


def dampened(
    gram: Float[Array, "in in"], dampening: float | Float[Array, ""]
) -> tuple[Float[Array, "in in"], Bool[Array, " in"]]:
    """The gram with a ridge, and which inputs are dead: these get the mean diagonal of the others.

    Args:
      gram: X'X.
      dampening: what is added to the diagonal, as a share of the mean diagonal of the live inputs.
    """
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0
    mean = diagonal.sum() / jnp.maximum(jnp.sum(~dead), 1)
    mean = jnp.where(mean == 0, 1.0, mean)
    return gram + jnp.diag(jnp.where(dead, mean, 0.0) + dampening * mean), dead


def factorize(gram: Float[Array, "in in"], dampening: float = 0.01) -> Factored:
    """R of R R' = X'X + ridge; where float32 finds no factor, again with ten times the dampening.

    Args:
      gram: X'X, in any unit: not divided by anything.
      dampening: the ridge as a share of the mean diagonal of the live inputs.

    Returns:
      The factor. If the gram is not finite, nor is the dampening that is returned: callers look at it,
      for nothing is raised here.
    """

    def found(factor):
        # The square of each entry is taken off its row's pivot, where it shows if it is not finite; and where
        # a pivot is not positive, all becomes NaN.
        return jnp.isfinite(jnp.diagonal(factor)).all()

    def without(state):
        tries, _, factor = state
        return (tries == 0) | (tries < _TRIES) & ~found(factor)

    def attempt(state):
        tries, ridge, _ = state
        ridge = jnp.where(tries == 0, ridge, jnp.maximum(10 * ridge, _FIRST_RETRY))
        damped, _ = dampened(gram, ridge)
        # Of the flipped matrix, so that the factor is an upper one: no inverse, no second factorisation.
        # LAPACK goes by columns: the transposes keep XLA from writing the gram and the factor out anew.
        lower = jax.lax.linalg.cholesky(damped[::-1, ::-1].T, symmetrize_input=False)
        return tries + 1, ridge, lower.T[::-1, ::-1]

    def again(state):
        # Always the attempt. XLA takes masks as large as the gram out of a loop, and keeps them meanwhile;
        # but it takes nothing out of a branch.
        return jax.lax.cond(without(state), attempt, lambda state: state, state)

    # The first attempt is made in the loop as well, so that no factor lives beside its successor.
    nothing = jnp.zeros(gram.shape, jnp.float32)
    _, ridge, factor = jax.lax.while_loop(without, again, (0, jnp.float32(dampening), nothing))
    ridge = jnp.where(found(factor), ridge, jnp.inf)
    return Factored(factor.T, jnp.diagonal(gram) == 0, ridge)
