"""The latest sequences a student wrote, kept to be learnt from again.

Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models",
https://arxiv.org/abs/2402.03898, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ragjax.training.written_rows import Rows


class Kept(NamedTuple):
    """A ring of sequences, the same on every device."""

    rows: Rows
    total: Int[Array, ""]
    """Sequences ever put in."""


def nothing_kept(capacity: int, *, seq: int, factors: bool) -> Kept:
    """Room for `capacity` sequences.

    Args:
      capacity: how many.
      seq: tokens of a sequence in a batch.
      factors: whether they have factors.
    """
    zeros = jnp.zeros(capacity, jnp.int32)
    rows = Rows(
        jnp.zeros((capacity, seq + 1), jnp.int32), zeros, zeros,
        jnp.ones((capacity, seq), jnp.float32) if factors else None,
    )  # fmt: skip
    return Kept(rows, jnp.int32(0))


def put(kept: Kept, rows: Rows) -> Kept:
    """With `rows`, at most as many as it holds, in place of the oldest."""
    capacity, new = len(kept.rows.tokens), len(rows.tokens)
    places = (kept.total + jnp.arange(new)) % capacity
    held = jax.tree.map(lambda old, x: old.at[places].set(x), kept.rows, rows)
    return Kept(held, kept.total + new)


def drawn(kept: Kept, size: int, key: Key[Array, ""]) -> Rows:
    """`size` of the sequences that are there, at random and none twice.

    Args:
      kept: holds at least as many.
      size: how many.
      key: random key.
    """
    there = jnp.arange(len(kept.rows.tokens)) < kept.total
    places = jax.lax.top_k(jnp.where(there, jax.random.uniform(key, there.shape), -1.0), size)[1]
    return jax.tree.map(lambda x: x[places], kept.rows)


class Memory(NamedTuple):
    """What a training remembers of its student's writing."""

    kept: Kept | None
    """What is learnt from again; none: nothing is."""
    steps: Int[Array, ""]
    """Steps whose batch the student had written."""
    raised: Float[Array, ""]
    """What was added to the share of such steps so far."""
    loss: Float[Array, ""]
    """Validation loss at the last rise, or before the first step."""
