"""Self-attention relations against float64 numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.distillation import relations
from ragjax.distillation.relations import relation_kl
from ragjax.models.blockwise import QueriesKeysValues

BATCH, SEQ, HEADS = 2, 7, 3


def problem(seed=0, widths=(6, 12)):
    rng = np.random.default_rng(seed)
    student, teacher = (
        QueriesKeysValues(*rng.normal(size=(3, BATCH, SEQ, width)).astype(np.float32)) for width in widths
    )
    weights = rng.random((BATCH, SEQ)).astype(np.float32)
    segments = np.repeat([[0, 1]], [3, 4], axis=1).repeat(BATCH, 0)
    return student, teacher, weights / weights.sum(), segments


def exact(student, teacher, weights, segments=None, heads=HEADS):
    """The loss one token at a time, in the words of the paper."""

    def distributions(vectors, row, head, token):
        width = vectors.shape[-1] // heads
        each = np.asarray(vectors, np.float64)[row, :, head * width : (head + 1) * width]
        there = [t for t in range(token + 1) if segments is None or segments[row, t] == segments[row, token]]
        scores = np.array([each[token] @ each[t] for t in there]) / np.sqrt(width)
        return scores - np.log(np.exp(scores).sum())

    total = 0.0
    for own, others in zip(student, teacher, strict=True):
        for row, head, token in np.ndindex(BATCH, heads, SEQ):
            log_q, log_p = (distributions(x, row, head, token) for x in (own, others))
            total += weights[row, token] * (np.exp(log_p) * (log_p - log_q)).sum() / heads
    return total


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("apart", [False, True])
def test_the_loss_equals_float64_however_it_is_cut(monkeypatch, rows, apart):
    monkeypatch.setattr(relations, "_ROWS", rows)
    student, teacher, weights, segments = problem()
    segments = segments if apart else None
    found = jax.jit(partial(relation_kl, heads=HEADS))(student, teacher, weights, segments=segments)
    np.testing.assert_allclose(found, exact(student, teacher, weights, segments), rtol=1e-5)


def test_the_gradient_equals_that_of_float64(monkeypatch):
    monkeypatch.setattr(relations, "_ROWS", 3)
    student, teacher, weights, segments = problem()
    gradient = jax.grad(partial(relation_kl, heads=HEADS))(student, teacher, weights, segments=segments)
    rng = np.random.default_rng(1)
    for _ in range(5):
        way = QueriesKeysValues(*rng.normal(size=(3, BATCH, SEQ, 6)))
        ahead, behind = (
            exact([x + step * w for x, w in zip(student, way, strict=True)], teacher, weights, segments)
            for step in (1e-5, -1e-5)
        )
        along = sum((np.asarray(g, np.float64) * w).sum() for g, w in zip(gradient, way, strict=True))
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-5)


def test_no_token_is_related_to_one_after_it():
    student, teacher, weights, _ = problem()
    weights[:, 4:] = 0

    def disturbed(vectors):
        return QueriesKeysValues(*(np.concatenate([x[:, :4], x[:, 4:] + 9], 1) for x in vectors))

    loss = relation_kl(student, teacher, weights, heads=HEADS)
    assert loss == relation_kl(disturbed(student), disturbed(teacher), weights, heads=HEADS) > 0


def test_a_network_has_its_own_relations():
    student, _, weights, _ = problem()
    assert relation_kl(student, student, weights, heads=HEADS) == pytest.approx(0, abs=1e-6)


def test_half_precision_vectors_have_float32_relations():
    student, teacher, weights, _ = problem()
    halves = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), x) for x in (student, teacher)]
    found = relation_kl(*halves, weights, heads=HEADS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact(*halves, weights), rtol=1e-5)


def test_few_relations_live_at_once():
    """Memory grows with the length, not with its square."""

    def temporaries(seq):
        shape = jax.ShapeDtypeStruct((1, seq, 8), jnp.float32)
        vectors = QueriesKeysValues(shape, shape, shape)
        weights = jax.ShapeDtypeStruct((1, seq), jnp.float32)
        gradient = jax.jit(jax.grad(partial(relation_kl, heads=4)))
        return gradient.lower(vectors, vectors, weights).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1024) < 2.5 * temporaries(512)
