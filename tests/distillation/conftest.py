"""Every loss over the vocabulary as its formula says it, in float64 and all at once."""

import numpy as np
import pytest


def kl(p, q):
    terms = np.zeros(np.broadcast_shapes(p.shape, q.shape))
    np.divide(p, q, out=terms, where=p > 0)
    np.log(terms, out=terms, where=p > 0)
    return (p * terms).sum(-1)


def jensen_shannon(p, q, share):
    m = share * p + (1 - share) * q
    return share * kl(p, m) + (1 - share) * kl(q, m)


FORMULAS = {
    "forward_kl": lambda p, q, skew, share: kl(p, q),
    "reverse_kl": lambda p, q, skew, share: kl(q, p),
    "jensen_shannon": lambda p, q, skew, share: jensen_shannon(p, q, share),
    "skewed_forward_kl": lambda p, q, skew, share: kl(p, skew * p + (1 - skew) * q),
    "skewed_reverse_kl": lambda p, q, skew, share: kl(q, skew * q + (1 - skew) * p),
    "total_variation": lambda p, q, skew, share: np.abs(p - q).sum(-1) / 2,
}


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def binned_at(ids, p):
    """Probabilities of some tokens, and of all others together."""
    chosen = np.take_along_axis(p, ids, -1)
    return np.concatenate([chosen, 1 - chosen.sum(-1, keepdims=True)], -1)


def exact(name, student, teacher, *, temperature=1.0, skew=0.1, share=0.5, top_k=0):
    """A loss of each token from logits, T^2 times that at temperature T, in float64."""
    q, p = (softmax(np.asarray(x, np.float64) / temperature) for x in (student, teacher))
    if top_k:
        ids = np.argsort(-p, -1, kind="stable")[..., :top_k]
        p, q = binned_at(ids, p), binned_at(ids, q)
    return temperature**2 * FORMULAS[name](p, q, skew, share)


def slopes(loss, student, step=1e-5):
    """How each token's loss changes with each of its own logits, by central differences."""
    student = np.asarray(student, np.float64)
    moves = step * np.eye(student.shape[-1])
    return np.stack([(loss(student + move) - loss(student - move)) / (2 * step) for move in moves], -1)


@pytest.fixture(scope="session", params=FORMULAS)
def name(request) -> str:
    """Each loss over the vocabulary between two distributions."""
    return request.param


@pytest.fixture(scope="session")
def formula():
    """`formula(name, student, teacher, temperature=, skew=, share=, top_k=)`: nats of each token."""
    return exact


@pytest.fixture(scope="session")
def slopes_of():
    """`slopes_of(loss, student)`: the gradient of each token's loss in its own logits."""
    return slopes


@pytest.fixture(scope="session")
def formulas():
    """The names of all formulas here."""
    return set(FORMULAS)
