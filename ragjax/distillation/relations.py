"""Self-attention relations: how alike the queries of two tokens are, and so their keys and their values.

A relation is a distribution over tokens, so that networks of any widths can be compared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ragjax.distillation.losses import LOWEST, Pair, centred, forward_kl
from ragjax.models.attention import causal_mask
from ragjax.models.blockwise import QueriesKeysValues

_ROWS = 64
"""Tokens of a sequence whose relations live at once."""

Heads = Float[Array, "batch three heads seq head"]


def relation_kl(
    student: QueriesKeysValues,
    teacher: QueriesKeysValues,
    weights: Float[Array, "batch seq"],
    *,
    heads: int,
    segments: Int[Array | np.ndarray, "batch seq"] | None = None,
) -> Float[Array, ""]:
    """KL(teacher || student) of softmax(A A' / sqrt(d)), summed over A of queries, keys and values.

    d is the width of one of the `heads` that A is cut into. A token is related to itself and to those
    before it. Relations are made in float32, of few tokens at a time, and made again for the gradient.

    Args:
      student: of one of its layers.
      teacher: of one of its layers, of any width.
      weights: what each token counts; they sum to 1.
      heads: divides the widths of both.
      segments: number of the document each token belongs to; relations stay inside it.

    Returns:
      The weighted sum over tokens of the mean over heads, in nats.

    References:
      Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
      Transformers", https://arxiv.org/abs/2012.15828.
    """
    batch, seq = weights.shape
    own, others = _heads(student, heads), _heads(teacher, heads)
    documents = jnp.zeros((batch, seq), jnp.int32) if segments is None else jnp.asarray(segments)
    order = jnp.broadcast_to(jnp.arange(seq), (batch, seq))

    @jax.checkpoint
    def some(part) -> Float[Array, ""]:
        own_rows, other_rows, places, row_documents, counts = part
        seen = causal_mask(places, order) & (row_documents[:, :, None] == documents[:, None])
        nats = forward_kl(Pair(_scores(own_rows, own, seen), _scores(other_rows, others, seen)))
        return (nats.sum(1).mean(1) * counts).sum()

    parts = -(-seq // _ROWS)
    length = -(-seq // parts)

    def cut(x: jax.Array, axis: int) -> jax.Array:
        """Parts of the sequences; what fills the last has no weight."""
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, parts * length - seq)
        shape = (*x.shape[:axis], parts, length, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0)

    rows = (cut(own, 3), cut(others, 3), cut(order, 1), cut(documents, 1), cut(weights, 1))
    return jax.lax.map(some, rows).sum()


def _heads(vectors: QueriesKeysValues, heads: int) -> Heads:
    by_head = [x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in vectors]
    return jnp.stack(by_head, 1)


def _scores(rows: Heads, every: Heads, seen: jax.Array) -> Float[Array, "batch three heads rows seq"]:
    scores = jnp.einsum("bahrd,bahsd->bahrs", rows, every, preferred_element_type=jnp.float32)
    return centred(jnp.where(seen[:, None, None], scores * rows.shape[-1] ** -0.5, LOWEST))
