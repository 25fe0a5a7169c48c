"""The losses over the vocabulary, in chunks of tokens, so that few logits live at once.

A loss is a function of float32 scores that gives a number per token; `LOSSES` names them. Scores of
one chunk are computed, turned into loss and gradient, and dropped: the gradients of the student's
hidden states and output table are made during the forward pass, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ragjax.models.matmul import transposed, weight_gradient
from ragjax.parallel.mesh import BATCH_AXES
from ragjax.parallel.pin import pin

VOCABULARY_AXES = ("tensor",)
"""Mesh axes that split the vocabulary."""


_LOWEST = -1e30


class Head(NamedTuple):
    """A model up to its last norm, and the table that turns that into scores."""

    hidden: Float[Array, "batch seq token_width"]
    """Output of the last norm, in the width of the table."""
    table: Float[Array, "padded_vocab token_width"]
    """Output projection, float32."""


class VocabularyTerms(NamedTuple):
    """Sums of each loss over tokens, times the tokens' weights; without gradient."""

    cross_entropy: Float[Array, ""]
    """Negative log-likelihood of the targets, measured also where its weight is 0."""
    forward_kl: Float[Array, ""]
    """T^2 KL(teacher || student); 0 where its weight is 0."""


class Scores(NamedTuple):
    """What a loss looks at: scores of a chunk of tokens, less their row's maximum."""

    student: Float[Array, "*tokens vocab"]
    teacher: Float[Array, "*tokens vocab"] | None
    targets: Int[Array, "*tokens"]
    temperature: float


def cross_entropy(scores: Scores) -> Float[Array, "*tokens"]:
    """-log p_student(target)."""
    columns = jnp.arange(scores.student.shape[-1])
    chosen = jnp.where(columns == scores.targets[..., None], scores.student, 0.0).sum(-1)
    return _log_sum_exp(scores.student) - chosen


def forward_kl(scores: Scores) -> Float[Array, "*tokens"]:
    """T^2 KL(teacher || student) of both distributions at temperature T.

    Hinton et al., "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531
    """
    assert scores.teacher is not None
    student, teacher = scores.student / scores.temperature, scores.teacher / scores.temperature
    teacher_log_sum = _log_sum_exp(teacher)
    likely = jnp.exp(teacher - teacher_log_sum[..., None])
    # Written so that the gradient is p_student - p_teacher without another sum over the vocabulary.
    divergence = (likely * (teacher - student)).sum(-1) - teacher_log_sum + _log_sum_exp(student)
    return scores.temperature**2 * divergence


LOSSES: dict[str, Callable[[Scores], Float[Array, "*tokens"]]] = {
    "cross_entropy": cross_entropy,
    "forward_kl": forward_kl,
}


def _log_sum_exp(centred: jax.Array) -> jax.Array:
    return jnp.log(jnp.exp(centred).sum(-1))


def vocabulary_loss(
    student: Head,
    targets: Int[Array, "batch seq"],
    weights: Float[Array, "batch seq"],
    *,
    vocab_size: int,
    cross_entropy: float,
    forward_kl: float = 0.0,
    temperature: float = 1.0,
    teacher: Head | None = None,
    chunk_tokens: int = 512,
    shards: int = 1,
) -> tuple[Float[Array, ""], VocabularyTerms]:
    """The weighted sum of the losses over the vocabulary, exact, with gradients to the student alone.

    Args:
      student: whose hidden states and table get the gradient.
      targets: the token that follows each position; any number where the weight is 0.
      weights: weight of each token, 0 for padding; divide by the number of real tokens for a mean.
      vocab_size: real rows of the tables; the rows after them have probability 0 in both models.
      cross_entropy: weight of the cross-entropy.
      forward_kl: weight of T^2 KL(teacher || student); needs `teacher` unless 0.
      temperature: T.
      teacher: the model to follow, over the same vocabulary.
      chunk_tokens: tokens per device whose scores live at once.
      shards: devices the batch axis is split over. Each sums its own table gradient, and the sums
        are added once, after the last chunk.

    Returns:
      The loss, and the sum of each of its terms.
    """
    coefficients = {"cross_entropy": cross_entropy, "forward_kl": forward_kl}
    plan = _Plan(
        coefficients=tuple((name, float(coefficients[name])) for name in LOSSES),
        temperature=float(temperature),
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        shards=shards,
    )
    if not forward_kl:
        teacher = None
    return _loss(plan, student, teacher, targets, weights.astype(jnp.float32))


class _Plan(NamedTuple):
    coefficients: tuple[tuple[str, float], ...]
    temperature: float
    vocab_size: int
    chunk_tokens: int
    shards: int


class _Chunk(NamedTuple):
    """A piece of the sequences of the whole batch; in the scan, with a leading axis of chunks."""

    student: Float[Array, "batch part width"]
    teacher: Float[Array, "batch part width"] | None
    targets: Int[Array, "batch part"]
    weights: Float[Array, "batch part"]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(plan, student, teacher, targets, weights):
    """The value alone."""
    table, teacher_table = _tables(student, teacher)

    def step(carry, chunk):
        scores = _scores(plan, chunk.student, table)
        return carry, _chunk_loss(plan, scores, chunk, teacher_table)[1]

    losses = jax.lax.scan(step, None, _cut(plan, student, teacher, targets, weights))[1]
    return _summed(plan, losses, weights)


def _loss_and_gradients(plan, student, teacher, targets, weights):
    """The value, and the gradients in place of what a backward pass would need."""
    table, teacher_table = _tables(student, teacher)
    differentiated = jax.grad(_chunk_loss, argnums=1, has_aux=True)

    def step(table_gradient, chunk):
        scores = _scores(plan, chunk.student, table)
        gradient, losses = differentiated(plan, scores, chunk, teacher_table)
        gradient = gradient.astype(table.dtype)
        hidden_gradient = jnp.dot(gradient, table, preferred_element_type=jnp.float32)
        table_gradient += _table_gradient(plan, gradient, chunk.student)
        return _pin_sums(plan, table_gradient), (losses, hidden_gradient.astype(chunk.student.dtype))

    shape = (plan.shards, *table.shape) if plan.shards > 1 else table.shape
    table_gradient, (losses, hidden_gradient) = jax.lax.scan(
        step, _pin_sums(plan, jnp.zeros(shape, jnp.float32)), _cut(plan, student, teacher, targets, weights)
    )
    if plan.shards > 1:
        table_gradient = table_gradient.sum(0)
    gradients = Head(_joined(hidden_gradient, targets.shape), table_gradient.astype(student.table.dtype))
    return _summed(plan, losses, weights), gradients


def _table_gradient(plan: _Plan, gradient: jax.Array, hidden: jax.Array) -> jax.Array:
    """Gradient of the table from one chunk, on a leading axis of shards where there are several."""
    lead = (plan.shards, -1) if plan.shards > 1 else (-1,)
    return weight_gradient(*(x.reshape(*lead, x.shape[-1]) for x in (gradient, hidden)))


def _backward(plan, gradients, cotangents):
    scale = cotangents[0]
    return jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradients), None, None, None


_loss.defvjp(_loss_and_gradients, _backward)


def _cut(plan: _Plan, student: Head, teacher: Head | None, targets, weights) -> _Chunk:
    """The sequences cut into equal parts, the last one filled up with tokens of weight 0."""
    batch, seq = targets.shape
    longest = max(1, plan.chunk_tokens * plan.shards // batch)
    parts = -(-seq // longest)
    length = -(-seq // parts)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, parts * length - seq)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, parts, length, *x.shape[2:]), 1, 0)

    return jax.tree.map(
        cut, _Chunk(student.hidden, None if teacher is None else teacher.hidden, targets, weights)
    )


def _tables(student: Head, teacher: Head | None) -> tuple[jax.Array, jax.Array | None]:
    """Both tables in the type of their model's hidden states, gathered once for all chunks."""

    def ready(head):
        return pin(head.table.astype(head.hidden.dtype), VOCABULARY_AXES, ())

    return ready(student), None if teacher is None else ready(teacher)


def _scores(plan: _Plan, hidden: jax.Array, table: jax.Array) -> jax.Array:
    """Float32 scores less their row's maximum, lowest where the table is only padding."""
    scores = jnp.dot(hidden, transposed(table), preferred_element_type=jnp.float32)
    # Finite, so that 0 * (teacher - student) is 0 there.
    scores = jnp.where(jnp.arange(table.shape[0]) < plan.vocab_size, scores, _LOWEST)
    # A constant shift changes no loss and has no gradient.
    return scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))


def _chunk_loss(plan: _Plan, student: jax.Array, chunk: _Chunk, teacher_table: jax.Array | None):
    """The weighted sum of the losses that have a coefficient, and each loss of each token."""
    teacher = None
    if teacher_table is not None:
        assert chunk.teacher is not None
        teacher = _scores(plan, chunk.teacher, teacher_table)
    scores = Scores(student, teacher, chunk.targets, plan.temperature)
    total, losses = jnp.zeros(()), {}
    for name, coefficient in plan.coefficients:
        if name == "cross_entropy" or coefficient:
            losses[name] = LOSSES[name](scores)
            total += coefficient * (chunk.weights * losses[name]).sum()
        else:
            losses[name] = jnp.zeros_like(chunk.weights)
    return total, VocabularyTerms(**losses)


def _joined(parts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The sequences put together again, without what filled the last part."""
    batch, seq = shape
    return jnp.moveaxis(parts, 0, 1).reshape(batch, -1, *parts.shape[3:])[:, :seq]


def _summed(plan: _Plan, losses: VocabularyTerms, weights: jax.Array) -> tuple[jax.Array, VocabularyTerms]:
    """The weighted sum of the losses of all tokens, together and by name."""
    terms = VocabularyTerms(*(jnp.sum(_joined(x, weights.shape) * weights) for x in losses))
    return sum(coefficient * getattr(terms, name) for name, coefficient in plan.coefficients), terms


def _pin_sums(plan: _Plan, sums: jax.Array) -> jax.Array:
    """Keeps each shard's sum of table gradients on its own devices."""
    return pin(sums, BATCH_AXES, VOCABULARY_AXES, ()) if plan.shards > 1 else sums
