"""AWQ: weights that large activations meet are scaled up before they are rounded, and so lose less."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.quantization.grid import rounded
from ragjax.quantization.scheme import Scheme

EXPONENTS = tuple(round(0.05 * i, 2) for i in range(20))
"""Those that are tried: 0, 0.05 ... 0.95."""


def activation_aware(
    kernel: Float[Array, "in out"],
    gram: Float[Array, "in in"],
    sizes: Float[Array, " in"],
    scheme: Scheme,
    *,
    tie: Callable[[Float[Array, " in"]], Float[Array, " in"]] = lambda divisors: divisors,
) -> Float[Array, " in"]:
    """What to divide inputs by, and multiply their weights with, for the outputs to change least.

    Of s = (mean |x_j|)^r, over the root of its largest times its least, the r is taken whose rounded weights
    change the outputs least: ||X (W - Q(s W) / s)||, told by X'X. Where that is r = 0, nothing is scaled.

    Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023),
    https://arxiv.org/abs/2306.00978, equations 4 and 5.

    Args:
      kernel: the weights that will be rounded of all matrices that read the inputs, side by side.
      gram: X'X of their inputs, in any unit.
      sizes: mean |x_j|, in any unit.
      scheme: how they will be rounded.
      tie: makes divisors alike of inputs that must have the same.

    Returns:
      The divisors; 1 for inputs that were 0 at every token.
    """
    weights, seen = kernel.astype(jnp.float32), sizes > 0

    def divisors(exponent):
        scale = jnp.where(seen, sizes, 1.0) ** exponent
        most = jnp.where(seen, scale, 0.0).max(initial=0.0)
        least = jnp.where(seen, scale, jnp.inf).min(initial=jnp.inf)
        centre = jnp.where(seen.any(), jnp.sqrt(most) * jnp.sqrt(least), 1.0)
        return tie(jnp.where(seen, scale / centre, 1.0))

    def loss(exponent):
        scale = divisors(exponent)[:, None]
        change = weights - rounded(weights * scale, scheme) / scale
        return jnp.sum(change * jnp.matmul(gram, change, precision=jax.lax.Precision.HIGHEST))

    exponents = jnp.array(EXPONENTS, jnp.float32)
    losses = jax.lax.map(loss, exponents)
    # What is not finite is not less: of a broken gram nothing is scaled.
    best = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
    return divisors(exponents[best])
