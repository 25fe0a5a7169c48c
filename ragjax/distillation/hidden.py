"""Losses between hidden states of paired layers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

States = Float[Array, "pairs batch seq width"]
"""Outputs of blocks, one for each pair of layers."""

_SMALLEST = 1e-16
"""Least squared length a cosine divides by, so that a state of 0 has a finite gradient."""


def hidden_mse(student: States, teacher: States, weights: Float[Array, "batch seq"]) -> Float[Array, ""]:
    """Mean squared error, in float32.

    Args:
      student: outputs of the student's blocks, in the teacher's width.
      teacher: outputs of the teacher's blocks they are compared with.
      weights: what each token counts; they sum to 1.

    Returns:
      The weighted sum over tokens of the mean over pairs and width.

    References:
      Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding",
      https://arxiv.org/abs/1909.10351.
    """
    difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.sum(jnp.mean(jnp.square(difference), axis=(0, 3)) * weights)


def hidden_cosine(student: States, teacher: States, weights: Float[Array, "batch seq"]) -> Float[Array, ""]:
    """1 less the cosine between states, in float32: their directions count, not their lengths.

    Args:
      student: outputs of the student's blocks, in the teacher's width.
      teacher: outputs of the teacher's blocks they are compared with.
      weights: what each token counts; they sum to 1.

    Returns:
      The weighted sum over tokens of the mean over pairs.

    References:
      Sanh et al., "DistilBERT, a distilled version of BERT", https://arxiv.org/abs/1910.01108.
    """
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    lengths = _inverse_length(student) * _inverse_length(teacher)
    cosine = (student * teacher).sum(-1) * lengths
    return jnp.sum(jnp.mean(1 - cosine, axis=0) * weights)


def _inverse_length(states: States) -> Float[Array, "pairs batch seq"]:
    return jax.lax.rsqrt(jnp.maximum(jnp.square(states).sum(-1), _SMALLEST))


HIDDEN: dict[str, Callable[[States, States, Float[Array, "batch seq"]], Float[Array, ""]]] = {
    "hidden_mse": hidden_mse,
    "hidden_cosine": hidden_cosine,
}
"""Losses by the name of their weight in the config."""
