"""SmoothQuant: what makes activations hard to round moves into the weights."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def smoothing(
    largest_inputs: Float[Array, " in"], largest_weights: Float[Array, " in"], *, strength: float = 0.5
) -> Float[Array, " in"]:
    """What to divide inputs by, and multiply their weights with: max|x_j|^a / max|w_j|^(1 - a).

    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
    (2022), https://arxiv.org/abs/2211.10438, equation 4.

    Args:
      largest_inputs: max|x_j| over a text.
      largest_weights: max|w_j| over all matrices that read the input.
      strength: a; 0: all is left to the activations, 1: to the weights.

    Returns:
      The divisors; 1 where an input was never seen, or nothing reads it.
    """
    known = (largest_inputs > 0) & (largest_weights > 0)
    inputs, weights = (jnp.where(known, x, 1.0) for x in (largest_inputs, largest_weights))
    return jnp.where(known, inputs**strength / weights ** (1 - strength), 1.0)
