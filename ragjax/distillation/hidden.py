"""Losses between hidden states of paired layers."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def uniform_pairs(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher layer each student layer answers to: the last of its equal share, as in TinyBERT.

    Example:
      >>> uniform_pairs(3, 12)
      (3, 7, 11)
    """
    return tuple(-(-(i + 1) * teacher_layers // student_layers) - 1 for i in range(student_layers))


def hidden_mse(
    student: Float[Array, "student_layers batch seq width"],
    teacher: Float[Array, "teacher_layers batch seq width"],
    weights: Float[Array, "batch seq"],
    *,
    pairs: tuple[int, ...],
) -> Float[Array, ""]:
    """Mean squared error between paired layers, in float32.

    Args:
      student: outputs of the student's blocks.
      teacher: outputs of the teacher's blocks.
      weights: what each token counts; they sum to 1.
      pairs: for each student layer, the teacher layer it is compared with.

    Returns:
      The weighted sum over tokens of the mean over layers and width.
    """
    difference = student.astype(jnp.float32) - teacher[jnp.asarray(pairs)].astype(jnp.float32)
    return jnp.sum(jnp.mean(jnp.square(difference), axis=(0, 3)) * weights)
