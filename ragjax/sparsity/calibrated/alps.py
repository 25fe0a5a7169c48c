"""ALPS: which weights go is itself optimised, and those that stay end at their best values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.sparsity.calibrated.cholesky import dampened
from ragjax.sparsity.calibrated.sparsegpt import Repaired
from ragjax.sparsity.patterns import Pattern

_FIRST_PENALTY = 0.1
_LEAST_PENALTY, _LARGEST_PENALTY = 1e-6, 1e6
_CHECK_EVERY = 3
_SETTLED_AFTER, _SETTLED_BELOW = 30, 3e-4
_RESIDUAL = 1e-5


def alps(
    kernel: Float[Array, "*matrices in out"],
    gram: Float[Array, "in in"],
    pattern: Pattern,
    sparsity: float | Float[Array, "*#matrices"],
    *,
    dampening: float = 0.01,
    steps: int = 300,
    refinements: int = 30,
) -> Repaired:
    """Prunes matrices that read the same inputs by ADMM, then solves for the weights that stay.

    Of each matrix, ||X W - X W0||^2 with a ridge is minimised over the weights that fit the pattern. Inputs
    are scaled to X'X of unit diagonal; by one eigendecomposition of it every ADMM step has a closed form. The
    penalty on the distance between the free weights and the pruned ones grows by 1.3, 1.2 or 1.1, as the mask
    still changes, until it does not. Conjugate gradients within the mask, preconditioned by the diagonal,
    finish. Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language
    Models" (2024), algorithms 1 and 2.

    Args:
      kernel: the weights.
      gram: X'X of their inputs, in any unit.
      pattern: chooses masks by the squares of the scaled weights [in, out].
      sparsity: of each matrix; may be traced.
      dampening: the ridge, as a share of the mean diagonal.
      steps: of ADMM, at most.
      refinements: steps of conjugate gradients, at most.

    Returns:
      The kernel in its own type, its mask, and the dampening; not finite where the gram is not.
    """
    damped, dead = dampened(gram, dampening)
    scale = jnp.sqrt(jnp.diagonal(damped))
    hessian = damped / scale[:, None] / scale
    values, vectors = jnp.linalg.eigh(hessian, symmetrize_input=False)
    spectrum = _Spectrum(hessian, jnp.maximum(values, 0.0), vectors)
    weights = jnp.where(dead[:, None], 0.0, kernel.astype(jnp.float32)) * scale[:, None]

    def prune(weights, sparsity):
        found = _admm(weights, spectrum, lambda w: pattern(jnp.square(w), sparsity, 1.0), steps)
        return _refine(found.pruned, found.mask, _times(hessian, weights), hessian, refinements), found.mask

    matrices = kernel.shape[:-2]
    prune = jnp.vectorize(prune, signature="(i,o),()->(i,o),(i,o)")
    pruned, mask = prune(weights, jnp.broadcast_to(jnp.asarray(sparsity, jnp.float32), matrices))
    share = jnp.where(jnp.isfinite(damped).all(), dampening, jnp.inf)
    pruned = jnp.where(mask, pruned / scale[:, None], 0.0)
    return Repaired(pruned.astype(kernel.dtype), mask, jnp.broadcast_to(share, matrices))


class _Spectrum(NamedTuple):
    hessian: Float[Array, "in in"]
    values: Float[Array, " in"]
    vectors: Float[Array, "in in"]


class _Admm(NamedTuple):
    pruned: Float[Array, "in out"]
    """D: fits the pattern."""
    dual: Float[Array, "in out"]
    """V: the multipliers of `free weights == pruned ones`."""
    mask: Bool[Array, "in out"]
    """Of the weights in `pruned` that stay."""
    checked: Bool[Array, "in out"]
    """The mask when it was last looked at."""
    penalty: Float[Array, ""]
    """rho."""
    moving: Bool[Array, ""]
    """Whether the penalty has been small enough for the mask to move."""
    step: Int[Array, ""]
    done: Bool[Array, ""]


def _admm(
    weights: Float[Array, "in out"],
    spectrum: _Spectrum,
    choose: Callable[[Float[Array, "in out"]], Bool[Array, "in out"]],
    steps: int,
) -> _Admm:
    mask = choose(weights)
    kept = jnp.sum(mask)
    start = _Admm(
        jnp.where(mask, weights, 0.0), jnp.zeros_like(weights), mask, mask, jnp.float32(_FIRST_PENALTY),
        jnp.bool_(False), jnp.int32(0), jnp.bool_(False),
    )  # fmt: skip
    target = spectrum.values[:, None] * _times(spectrum.vectors.T, weights)

    def once(at: _Admm) -> _Admm:
        pull = _times(spectrum.vectors.T, at.penalty * at.pruned - at.dual)
        free = _times(spectrum.vectors, (target + pull) / (spectrum.values[:, None] + at.penalty))
        wanted = free + at.dual / at.penalty
        mask = choose(wanted)
        pruned = jnp.where(mask, wanted, 0.0)
        # The multipliers after their step: penalty * (wanted - pruned), without its rounding.
        dual = jnp.where(mask, 0.0, at.penalty * wanted)
        at = at._replace(pruned=pruned, dual=dual, mask=mask, step=at.step + 1)
        return jax.lax.cond(at.step % _CHECK_EVERY == 0, check, lambda at: at, at)

    def check(at: _Admm) -> _Admm:
        changed = jnp.sum(at.mask != at.checked)
        share = changed / jnp.maximum(kept, 1)
        growth = jnp.where(share > 0.1, 1.3, jnp.where(share > 0.005, 1.2, 1.1))
        moving = at.moving | (share > 0.005)
        # A penalty that was too large from the start held the mask where it was: begin again with less.
        penalty = jnp.clip(at.penalty * jnp.where(moving, growth, 0.2), _LEAST_PENALTY, _LARGEST_PENALTY)
        again = ~moving & (changed > 0)
        settled = (changed == 0) & (moving | (penalty <= _LEAST_PENALTY))
        return at._replace(
            pruned=jnp.where(again, start.pruned, at.pruned),
            dual=jnp.where(again, 0.0, at.dual),
            mask=jnp.where(again, start.mask, at.mask),
            checked=at.mask,
            penalty=penalty,
            moving=moving,
            done=settled | ((at.step > _SETTLED_AFTER) & (share < _SETTLED_BELOW)),
        )

    return jax.lax.while_loop(lambda at: ~at.done & (at.step < steps), once, start)


def _refine(
    pruned: Float[Array, "in out"],
    mask: Bool[Array, "in out"],
    target: Float[Array, "in out"],
    hessian: Float[Array, "in in"],
    steps: int,
) -> Float[Array, "in out"]:
    """Conjugate gradients for `hessian @ w == target` at the mask, every output on its own.

    The diagonal of the Hessian is 1: it is its own preconditioner.
    """

    def within(x):
        return jnp.where(mask, x, 0.0)

    bound = jnp.square(_RESIDUAL) * jnp.square(within(target)).sum(0)

    def go_on(state):
        _, _, _, size, step = state
        return (step < steps) & (size > bound).any()

    def once(state):
        at, residual, direction, size, step = state
        image = within(_times(hessian, direction))
        curvature = (direction * image).sum(0)
        length = jnp.where((size > bound) & (curvature > 0), size / curvature, 0.0)
        at, residual = at + length * direction, residual - length * image
        new = jnp.square(residual).sum(0)
        direction = residual + jnp.where(size > 0, new / size, 0.0) * direction
        return at, residual, direction, new, step + 1

    residual = within(target - _times(hessian, pruned))
    state = (pruned, residual, residual, jnp.square(residual).sum(0), jnp.int32(0))
    return jax.lax.while_loop(go_on, once, state)[0]


def _times(matrix: Float[Array, "n m"], x: Float[Array, "m out"]) -> Float[Array, "n out"]:
    return jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)
