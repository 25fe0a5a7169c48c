"""The losses over the vocabulary, in chunks of tokens, so that few logits live at once.

Scores of one chunk are computed, turned into loss and gradient, and dropped: the gradients of the student's
hidden states and output table are made during the forward pass, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.distillation.known import Drawn, Likeliest, binned, likeliest
from ragjax.distillation.losses import LOSSES, LOWEST, MIXING, Mixing, Pair, centred, forward_kl, log_probs
from ragjax.distillation.table_gradient import plus_table_gradient
from ragjax.kernels.instead import by_kernel
from ragjax.kernels.soft_targets import soft_targets, soft_targets_serve
from ragjax.models.products import product, product_with_transposed
from ragjax.models.residuals import keep, kept
from ragjax.parallel.mesh import BATCH_AXES
from ragjax.parallel.pin import on_one_device, pin

VOCABULARY_AXES = ("tensor",)
"""Mesh axes that split the vocabulary."""

Scalar = float | Float[Array, ""]


class Head(NamedTuple):
    """A model up to its last norm, and the table that turns that into scores."""

    hidden: Float[Array, "batch seq token_width"]
    """Output of the last norm, in the width of the table."""
    table: Float[Array, "padded_vocab token_width"]
    """Output projection, float32."""


Teacher = Head | Likeliest | Drawn
"""What is known of a teacher's distributions: all of them, or what was kept of them before."""


def vocabulary_loss(
    student: Head,
    targets: Int[Array, "batch seq"],
    weights: Float[Array, "batch seq"],
    *,
    vocab_size: int,
    coefficients: Mapping[str, Scalar],
    teachers: Sequence[Teacher] = (),
    shares: Sequence[float] = (1.0,),
    temperature: Scalar = 1.0,
    mixing: Mixing = MIXING,
    top_k: int = 0,
    chunk_tokens: int = 128,
    shards: int = 1,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the losses over the vocabulary, exact, with gradients to the student alone.

    Args:
      student: whose hidden states and table get the gradient.
      targets: the token that follows each position; any number where the weight is 0.
      weights: weight of each token, 0 for padding; divide by the number of real tokens for a mean.
      vocab_size: real rows of the tables; the rows after them have probability 0 in all models.
      coefficients: what each loss counts: "cross_entropy", or a key of `LOSSES`; may be traced. Losses of
        a plain 0 are not computed, but for the cross-entropy, which is always told.
      teachers: the models to follow, over the same vocabulary; none where no coefficient asks for one.
      shares: what each teacher counts.
      temperature: T; all losses but the cross-entropy compare distributions at T, and count T^2 times.
      mixing: the numbers of the losses that mix.
      top_k: outcomes told apart where a teacher's whole distribution is there: its likeliest ones, and all
        others as one more; 0: all of them.
      chunk_tokens: tokens per device whose scores live at once.
      shards: devices the batch axis is split over. Each sums its own table gradient, and the sums
        are added once, after the last chunk.

    Returns:
      The loss, and the sum over tokens of each loss times the tokens' weights, without gradient.
    """
    asked = {n: c for n, c in coefficients.items() if n != "cross_entropy" and not _is_plain(c, 0)}
    taught = tuple(teachers) if asked else ()
    plan = _Plan(
        names=tuple(asked), shares=tuple(map(float, shares)), mixing=mixing, top_k=top_k,
        vocab_size=vocab_size, chunk_tokens=chunk_tokens, shards=shards,
        is_soft=not asked or _is_soft(asked, taught, temperature, top_k),
    )  # fmt: skip
    values = (coefficients.get("cross_entropy", 0.0), *asked.values())
    knobs = _Knobs(jnp.stack([jnp.float32(c) for c in values]), jnp.float32(temperature))
    return _loss(plan, student, taught, targets, weights.astype(jnp.float32), knobs)


def _is_plain(scalar: Scalar, number: float) -> bool:
    """Whether a scalar is that number, and known to be before the program runs."""
    return not isinstance(scalar, jax.Array) and scalar == number


def _is_soft(asked: Iterable[str], taught: Sequence[Teacher], temperature: Scalar, top_k: int) -> bool:
    """Whether losses are the KL from one teacher, whole and at temperature 1."""
    whole = len(taught) == 1 and isinstance(taught[0], Head)
    losses = [LOSSES[name] for name in asked]
    return whole and losses == [forward_kl] and _is_plain(temperature, 1) and not top_k


class _Plan(NamedTuple):
    """What the program is made from."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    mixing: Mixing
    top_k: int
    vocab_size: int
    chunk_tokens: int
    shards: int
    is_soft: bool
    """Whether the losses are the cross-entropy, and at most the KL from one teacher, whole and as it is."""


class _Knobs(NamedTuple):
    """What may change from step to step."""

    coefficients: Float[Array, " losses"]
    """Of the cross-entropy first."""
    temperature: Float[Array, ""]


class _Tokens(NamedTuple):
    """All tokens of each shard, or a chunk of them in one row."""

    student: Float[Array, "*tokens width"]
    teachers: tuple[Float[Array, "*tokens width"] | Likeliest | Drawn, ...]
    targets: Int[Array, "*tokens"]
    weights: Float[Array, "*tokens"]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(plan, student, teachers, targets, weights, knobs):
    """The value alone."""
    table, tables = _ready(student), _tables(teachers)

    def step(carry, first, chunk):
        scores = _scores(plan, chunk.student, table)
        return carry, _chunk_loss(plan, scores, chunk, tables, knobs)[1]

    _, sums = _over_chunks(plan, step, None, _in_rows(plan, student, teachers, targets, weights))
    return _summed(plan, sums, knobs)


def _loss_and_gradients(plan, student, teachers, targets, weights, knobs):
    """The value, and the gradients in place of what a backward pass would need."""
    table, tables = _ready(student), _tables(teachers)

    def step(gradients, first, chunk):
        gradient, sums = _chunk_gradient(plan, table, tables, chunk, knobs)
        gradient = gradient.astype(table.dtype)
        hidden_gradient = product(gradient, table).astype(table.dtype)
        table_gradient = plus_table_gradient(gradients.table, gradient, chunk.student)
        hidden_sums = _with_tokens(gradients.hidden, first, hidden_gradient)
        return Head(hidden_sums, _pin_sums(plan, table_gradient)), sums

    tokens = _in_rows(plan, student, teachers, targets, weights)
    # An axis of 1 would cost a copy of all sums in each chunk.
    shards = (plan.shards,) if plan.shards > 1 else ()
    table_sums = _pin_sums(plan, jnp.zeros((*shards, *table.shape), jnp.float32))
    gradients, sums = _over_chunks(plan, step, Head(keep(jnp.zeros_like(tokens.student)), table_sums), tokens)
    hidden_gradient = kept(gradients.hidden, table.dtype).reshape(student.hidden.shape)
    table_gradient = gradients.table.sum(0) if shards else gradients.table
    gradients = Head(hidden_gradient, table_gradient.astype(student.table.dtype))
    return _summed(plan, sums, knobs), gradients


def _backward(plan, gradients, cotangents):
    scale = cotangents[0]
    return jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradients), None, None, None, None


_loss.defvjp(_loss_and_gradients, _backward)


def _in_rows(plan: _Plan, student: Head, teachers: tuple[Teacher, ...], targets, weights) -> _Tokens:
    """The tokens of each shard in one row."""
    seen = tuple(one.hidden if isinstance(one, Head) else one for one in teachers)
    tokens = _Tokens(student.hidden, seen, targets, weights)
    return jax.tree.map(lambda x: x.reshape(plan.shards, -1, *x.shape[2:]), tokens)


def _over_chunks(
    plan: _Plan, step: Callable, carry: Any, tokens: _Tokens
) -> tuple[Any, dict[str, jax.Array]]:
    """Scans over equal chunks. The last one starts where it is whole; what it sees again counts nothing.

    XLA's CPU backend reduces along rows slowly where a leading axis is 1, and copies a factor of a product
    of more than two axes, so that the shards' tokens are one axis in a chunk.
    """
    count = tokens.weights.shape[1]
    parts = -(-count // plan.chunk_tokens)
    length = -(-count // parts)

    def at(carry, number):
        first = jnp.minimum(number * length, count - length)
        # As one with the chunk's place, so that no copy of all tokens' bits is made ahead of the loop.
        there, first = jax.lax.optimization_barrier((tokens, first))
        chunk = jax.tree.map(lambda x: _slice(x, first, length), there)
        new = first + jnp.arange(length) >= number * length
        chunk = _without(chunk, new)
        return step(carry, first, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunk))

    return jax.lax.scan(at, carry, jnp.arange(parts))


def _without(chunk: _Tokens, new: Bool[Array, " chunk"]) -> _Tokens:
    """A chunk in which tokens that another one had count nothing.

    Their hidden states are 0 by a product, which XLA's TPU compiler, unlike a mere cut, does not take apart
    to round those of all tokens ahead of the loop.
    """

    def product(x):
        return x * new[:, None].astype(x.dtype) if isinstance(x, jax.Array) else x

    teachers = tuple(map(product, chunk.teachers))
    return chunk._replace(student=product(chunk.student), teachers=teachers, weights=chunk.weights * new)


def _with_tokens(sums: jax.Array, first: jax.Array, gradient: jax.Array) -> jax.Array:
    """Sums as `keep` has them, and what is added to the tokens of a chunk, in place."""
    gradient = gradient.reshape(sums.shape[0], -1, sums.shape[2])
    before = kept(jax.lax.dynamic_slice_in_dim(sums, first, gradient.shape[1], 1), gradient.dtype)
    return jax.lax.dynamic_update_slice_in_dim(sums, keep(before + gradient), first, 1)


def _slice(x: jax.Array, first: jax.Array, length: int) -> jax.Array:
    return kept(jax.lax.dynamic_slice_in_dim(keep(x), first, length, 1), x.dtype)


def _tables(teachers: tuple[Teacher, ...]) -> tuple[jax.Array | None, ...]:
    return tuple(_ready(one) if isinstance(one, Head) else None for one in teachers)


def _ready(head: Head) -> jax.Array:
    """The table in the type of the hidden states, gathered once for all chunks."""
    return pin(head.table.astype(head.hidden.dtype), VOCABULARY_AXES, ())


def _scores(plan: _Plan, hidden: jax.Array, table: jax.Array) -> jax.Array:
    """Float32 scores less their row's maximum, lowest where the table is only padding."""
    scores = product_with_transposed(hidden, table, rewritten=False)
    # A constant shift changes no loss and has no gradient.
    return centred(jnp.where(jnp.arange(table.shape[0]) < plan.vocab_size, scores, LOWEST))


def _chunk_gradient(
    plan: _Plan,
    table: jax.Array,
    tables: tuple[jax.Array | None, ...],
    chunk: _Tokens,
    knobs: _Knobs,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The gradient of `_chunk_loss` to the student's scores, and each loss as that has it."""

    def differentiated(table, tables, chunk, knobs):
        scores = _scores(plan, chunk.student, table)
        return jax.grad(_chunk_loss, argnums=1, has_aux=True)(plan, scores, chunk, tables, knobs)

    given = table, tables, chunk, knobs
    if not plan.is_soft or not soft_targets_serve(table.shape[0]) or not on_one_device(table):
        return differentiated(*given)
    return by_kernel(partial(_soft_gradient, plan), differentiated, *given)


def _soft_gradient(
    plan: _Plan,
    table: jax.Array,
    tables: tuple[jax.Array | None, ...],
    chunk: _Tokens,
    knobs: _Knobs,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`_chunk_gradient` where it is a difference of probabilities, which are read from memory once."""
    student = product_with_transposed(chunk.student, table, rewritten=False)
    teacher, factors = None, jnp.stack([knobs.coefficients[0], jnp.float32(0)])
    for share, hidden, one in zip(plan.shares, chunk.teachers, tables, strict=False):
        assert isinstance(hidden, jax.Array)
        assert one is not None
        teacher = product_with_transposed(hidden, one, rewritten=False)
        factors = knobs.coefficients * jnp.array([1, share], jnp.float32)
    counts = chunk.weights[:, None] * factors
    made = soft_targets(student, teacher, chunk.targets.astype(jnp.int32), counts, plan.vocab_size)
    losses = {"cross_entropy": made.cross_entropy}
    losses |= {name: plan.shares[0] * made.forward_kl for name in plan.names}
    return made.gradient, _over_shards(plan, chunk, losses)


def _over_shards(plan: _Plan, chunk: _Tokens, losses: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Each loss summed over the tokens of each shard."""
    return {name: (chunk.weights * nats).reshape(plan.shards, -1).sum(-1) for name, nats in losses.items()}


def _chunk_loss(
    plan: _Plan,
    student: jax.Array,
    chunk: _Tokens,
    tables: tuple[jax.Array | None, ...],
    knobs: _Knobs,
):
    """The weighted sum of the losses, and each loss summed over the tokens of each shard."""
    losses = {"cross_entropy": _cross_entropy(student, chunk.targets)}
    losses |= dict.fromkeys(plan.names, jnp.zeros_like(chunk.weights))
    for share, known, table in zip(plan.shares, chunk.teachers, tables, strict=False):
        for name, nats in _divergences(plan, student, known, table, knobs.temperature).items():
            losses[name] += share * jnp.square(knobs.temperature) * nats
    sums = _over_shards(plan, chunk, losses)
    return _summed(plan, sums, knobs)[0], sums


def _cross_entropy(scores: jax.Array, targets: Int[Array, "*tokens"]) -> Float[Array, "*tokens"]:
    """-log q(target)."""
    columns = jnp.arange(scores.shape[-1])
    chosen = jnp.where(columns == targets[..., None], scores, 0.0).sum(-1)
    return jnp.log(jnp.exp(scores).sum(-1)) - chosen


def _divergences(
    plan: _Plan,
    student: jax.Array,
    teacher: jax.Array | Likeliest | Drawn,
    table: jax.Array | None,
    temperature: jax.Array,
) -> dict[str, Float[Array, "*tokens"]]:
    """Each loss of each token against one teacher, before T^2."""
    student = student / temperature
    if isinstance(teacher, Drawn):
        found = jnp.take_along_axis(log_probs(student), teacher.ids.astype(jnp.int32), -1)
        return {"forward_kl": (teacher.log_probs.astype(jnp.float32) - found).mean(-1)}
    if not isinstance(teacher, Likeliest):
        assert table is not None
        scores = _scores(plan, teacher, table) / temperature
        if not plan.top_k:
            return _each(plan, student, scores)
        teacher = likeliest(scores, plan.top_k)
    known = teacher.log_probs.astype(jnp.float32)
    return _each(plan, binned(student, teacher.ids.astype(jnp.int32)), known)


def _each(plan: _Plan, student: jax.Array, teacher: jax.Array) -> dict[str, Float[Array, "*tokens"]]:
    pair = Pair(student, teacher, plan.mixing)
    return {name: LOSSES[name](pair) for name in plan.names}


def _summed(plan: _Plan, sums: dict[str, jax.Array], knobs: _Knobs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the losses of all tokens, together and by name."""
    terms = {name: x.sum() for name, x in sums.items()}
    # By name: the scan hands dicts back in the order of their keys.
    names = ("cross_entropy", *plan.names)
    return sum(c * terms[name] for c, name in zip(knobs.coefficients, names, strict=True)), terms


def _pin_sums(plan: _Plan, sums: jax.Array) -> jax.Array:
    """Keeps each shard's sum of table gradients on its own devices."""
    return pin(sums, BATCH_AXES, VOCABULARY_AXES, ()) if plan.shards > 1 else sums
