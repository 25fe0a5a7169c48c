"""Cross-entropy and the divergence from a teacher, of rows of scores, and their gradient.

XLA's CPU backend takes about a dozen passes over all scores, which are far more than a cache holds. Here a
row of them stays in a core's own cache from the first pass to the last.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from string import Template
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ragjax.kernels.calls import custom_call
from ragjax.kernels.exponential import exponential_function
from ragjax.kernels.machine import kernels_serve, vectors
from ragjax.kernels.vectors_text import all_lanes, constant, everywhere

_LOWEST = -1e30
"""In place of what is no outcome. Finite, so that a probability of 0 times it is 0."""


class RowLosses(NamedTuple):
    """Of the rows of a student."""

    gradient: Float[Array, "rows columns"]
    """Of the losses, by what they count, to the student's scores."""
    cross_entropy: Float[Array, " rows"]
    """-log q(target), in nats; the logarithm of the sum alone where there is no such outcome."""
    forward_kl: Float[Array, " rows"]
    """KL(p || q), in nats; 0 without a teacher."""


def soft_targets_serve(columns: int) -> bool:
    """Whether there is such a kernel for rows of so many scores."""
    return kernels_serve() and columns % vectors().lanes == 0


def soft_targets(
    student: Float[Array, "rows columns"],
    teacher: Float[Array, "rows columns"] | None,
    targets: Int32[Array, " rows"],
    counts: Float[Array, "rows 2"],
    outcomes: int,
) -> RowLosses:
    """Each row's losses, and the gradient of their sum, by what they count, to the student's scores.

    Args:
      student: float32; its place is where the gradient goes, where nothing else reads it.
      teacher: float32; none: there is none.
      targets: the outcome that came true.
      counts: of each row the factors of its cross-entropy and of its divergence from the teacher.
      outcomes: columns that are outcomes, the first ones; the others have probability 0, whatever they hold.
    """
    rows, columns = student.shape
    # Machine code takes what it is given at its word.
    assert soft_targets_serve(columns)
    assert 0 < outcomes <= columns
    assert student.dtype == counts.dtype == jnp.float32
    assert targets.dtype == jnp.int32
    assert (targets.shape, counts.shape) == ((rows,), (rows, 2))
    taught = teacher is not None
    if teacher is not None:
        assert (teacher.shape, teacher.dtype) == (student.shape, student.dtype)
    lanes = vectors().lanes
    text = partial(_text, lanes, taught=taught)
    name = custom_call(f"ragjax_soft_targets_{taught:d}_{lanes}", text, improve=False)
    results = jax.ShapeDtypeStruct(student.shape, jnp.float32), jax.ShapeDtypeStruct((rows, 4), jnp.float32)
    call = jax.ffi.ffi_call(name, results, vmap_method="sequential", input_output_aliases={3: 0})
    gradient, sums = call(
        targets, counts, jnp.int32(outcomes), student, *([] if teacher is None else [teacher])
    )
    log_sum = jnp.log(sums[:, 0])
    cross_entropy = log_sum - sums[:, 3]
    if not taught:
        return RowLosses(gradient, cross_entropy, jnp.zeros_like(cross_entropy))
    return RowLosses(gradient, cross_entropy, sums[:, 2] / sums[:, 1] - jnp.log(sums[:, 1]) + log_sum)


def _text(lanes: int, *, taught: bool) -> str:
    """A kernel that makes gradients, and what the losses are made of."""
    own = Template(Path(__file__).with_name("soft_targets.ll").read_text()).substitute(
        lanes=lanes, vector=f"<{lanes} x float>", integers=f"<{lanes} x i32>", mask=f"<{lanes} x i1>",
        lowest=all_lanes(constant(_LOWEST), lanes),
        steps=f"<{', '.join(f'i32 {lane}' for lane in range(lanes))}>",
        # What begins with a semicolon is a comment.
        taught="" if taught else "; ", teacher=4 if taught else 3,
        teacher_count="%teacher.count" if taught else "0.0",
        slope="%k.slope" if taught else "%k.student.part",
    )  # fmt: skip
    return "\n".join([own, everywhere(lanes), exponential_function(lanes)])
