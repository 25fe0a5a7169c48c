import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.generation.filters import Filters, filtered, penalized

torch = pytest.importorskip("torch")
warpers = pytest.importorskip("transformers.generation.logits_process")

VOCAB = 1000


@pytest.fixture(scope="module")
def scores():
    """Rows from flat to sharp, with tokens that can never come."""
    rows = np.random.default_rng(0).normal(size=(6, VOCAB)) * np.array([[0.1], [1], [2], [4], [8], [16]])
    rows[:, 17] = -np.inf
    return rows.astype(np.float32)


def ours(scores, top_k=0, top_p=1.0, min_p=0.0):
    return np.asarray(run(scores, Filters(jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))))


run = jax.jit(filtered)


def theirs(scores, top_k=0, top_p=1.0, min_p=0.0):
    """In the order of transformers' `generate`."""
    chain = warpers.LogitsProcessorList()
    if top_k:
        chain.append(warpers.TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(warpers.TopPLogitsWarper(top_p))
    if min_p:
        chain.append(warpers.MinPLogitsWarper(min_p))
    return chain(None, torch.tensor(scores)).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 5000},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"top_p": 1e-9},
        {"top_p": 0.999},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 40, "top_p": 0.8},
        {"top_k": 200, "top_p": 0.95, "min_p": 0.02},
        {"top_p": 0.7, "min_p": 0.3},
    ],
    ids=str,
)
def test_filters_equal_those_of_transformers_in_their_order(scores, options):
    np.testing.assert_array_equal(ours(scores, **options), theirs(scores, **options))


def test_each_sequence_may_have_filters_of_its_own(scores):
    top_k, top_p, min_p = [0, 3, 0, 7, 1, 0], [1.0, 1.0, 0.5, 0.9, 1.0, 0.2], [0.0, 0.0, 0.0, 0.1, 0.0, 0.0]
    mixed = run(scores, Filters(jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p)))
    each = [theirs(scores[i : i + 1], top_k[i], top_p[i], min_p[i])[0] for i in range(6)]
    np.testing.assert_array_equal(mixed, each)


def test_several_places_of_a_sequence_are_filtered_alike(scores):
    filters = Filters(jnp.int32([5, 0]), jnp.float32(0.9), jnp.float32([0.0, 0.1]))
    together = run(scores.reshape(2, 3, VOCAB), filters)
    for i in range(3):
        np.testing.assert_array_equal(together[:, i], run(scores.reshape(2, 3, VOCAB)[:, i], filters))


def test_ties_at_the_edge_stay_together():
    tied = np.array([[3.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    assert np.isfinite(ours(tied, top_k=2)).tolist() == [[True, True, True, True, False]]
    assert np.isfinite(ours(tied, top_p=0.75)).tolist() == [[True, True, True, True, False]]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
def test_the_penalty_equals_that_of_transformers(scores, penalty):
    history = np.random.default_rng(1).integers(0, VOCAB, (6, 300))
    seen = np.zeros((6, VOCAB), bool)
    np.put_along_axis(seen, history, True, 1)
    expected = warpers.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(history), torch.tensor(scores))
    np.testing.assert_array_equal(jax.jit(penalized)(scores, seen, jnp.float32(penalty)), expected.numpy())
