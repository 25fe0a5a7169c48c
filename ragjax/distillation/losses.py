"""Losses over the vocabulary: how far a student's distribution is from a teacher's, token by token.

Each is a pure function of two arrays of logits, named by direction; p is the teacher's distribution, q the
student's. `LOSSES` names them for the config; `over_tokens` is the mean over the tokens of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Logits = Float[Array, "*tokens outcomes"]
Nats = Float[Array, "*tokens"]

LOWEST = -1e30
"""Logit of what cannot be. Finite, so that a probability of 0 times it is 0."""


class Mixing(NamedTuple):
    """The numbers of the losses that compare with a mixture of both distributions."""

    skew: float = 0.1
    """Share of the distribution the divergence is taken from in the mixture it is compared with."""
    teacher_share: float = 0.5
    """Share of the teacher in the mixture of the Jensen-Shannon divergence."""


MIXING = Mixing()


class Pair(NamedTuple):
    """What a loss looks at."""

    student: Logits
    """Float32, none so far above 0 that its exponential overflows: as `centred` gives them."""
    teacher: Logits
    """The same, over the same outcomes; no gradient goes there."""
    mixing: Mixing = MIXING


def forward_kl(pair: Pair) -> Nats:
    """KL(p || q): the student covers all that the teacher does.

    References:
      Hinton et al., "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531.
    """
    student, teacher = pair.student, pair.teacher
    teacher_log_sum = _log_sum_exp(teacher)
    likely = jnp.exp(teacher - teacher_log_sum[..., None])
    # Written so that the gradient is q - p without another sum over the outcomes.
    return (likely * (teacher - student)).sum(-1) - teacher_log_sum + _log_sum_exp(student)


def reverse_kl(pair: Pair) -> Nats:
    """KL(q || p): the student keeps to what the teacher finds likely.

    References:
      Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models",
      https://arxiv.org/abs/2306.08543.
    """
    student, teacher = log_probs(pair.student), log_probs(pair.teacher)
    return _expected(student, student - teacher)


def jensen_shannon(pair: Pair) -> Nats:
    """b KL(p || m) + (1 - b) KL(q || m) of the mixture m = b p + (1 - b) q, b the teacher's share.

    Its slope goes to that of b KL(p || q) for b to 0, and of (1 - b) KL(q || p) for b to 1.

    References:
      Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
      https://arxiv.org/abs/2306.13649.
    """
    student, teacher = log_probs(pair.student), log_probs(pair.teacher)
    share = pair.mixing.teacher_share
    mixture = _mixed(teacher, student, share)
    return share * _expected(teacher, teacher - mixture) + (1 - share) * _expected(student, student - mixture)


def skewed_forward_kl(pair: Pair) -> Nats:
    """KL(p || a p + (1 - a) q), a the skew: bounded where the student misses what the teacher does.

    References:
      Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models",
      https://arxiv.org/abs/2402.03898.
    """
    student, teacher = log_probs(pair.student), log_probs(pair.teacher)
    return _expected(teacher, teacher - _mixed(teacher, student, pair.mixing.skew))


def skewed_reverse_kl(pair: Pair) -> Nats:
    """KL(q || a q + (1 - a) p), a the skew.

    References:
      Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models",
      https://arxiv.org/abs/2402.03898.
    """
    student, teacher = log_probs(pair.student), log_probs(pair.teacher)
    return _expected(student, student - _mixed(student, teacher, pair.mixing.skew))


def total_variation(pair: Pair) -> Nats:
    """Half the sum of |p - q|, in [0, 1].

    References:
      Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
      https://arxiv.org/abs/2307.15190.
    """
    student, teacher = jnp.exp(log_probs(pair.student)), jnp.exp(log_probs(pair.teacher))
    return 0.5 * jnp.abs(student - teacher).sum(-1)


LOSSES: dict[str, Callable[[Pair], Nats]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
}
"""Losses by the name of their weight in the config. All count T^2 times at a temperature T."""


def over_tokens(
    loss: Callable[[Pair], Nats],
    student: Logits,
    teacher: Logits,
    mask: Bool[Array, "*tokens"],
    *,
    temperature: float = 1.0,
    mixing: Mixing = MIXING,
) -> Float[Array, ""]:
    """A loss as the mean over the tokens of a mask, in nats, times the temperature squared.

    For short texts and tests: all logits are there at once. The train step takes them in chunks.

    Args:
      loss: one of `LOSSES`.
      student: its logits.
      teacher: its logits over the same vocabulary.
      mask: which tokens count.
      temperature: T, by which all logits are divided.
      mixing: the numbers of the losses that mix.

    Example:
      >>> student = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
      >>> teacher = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
      >>> float(over_tokens(total_variation, student, teacher, jnp.array([True, False]))).__round__(3)
      0.4
    """
    pair = Pair(
        centred(student.astype(jnp.float32)) / temperature,
        centred(jax.lax.stop_gradient(teacher.astype(jnp.float32))) / temperature,
        mixing,
    )
    each = jnp.where(mask, loss(pair), 0.0)
    return temperature**2 * each.sum() / jnp.maximum(mask.sum(), 1)


def centred(logits: Logits) -> Logits:
    """Logits less the highest of their row: the same distribution, and no exponential overflows."""
    return logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))


def log_probs(logits: Logits) -> Logits:
    """Logarithms of the probabilities, of logits as a `Pair` has them."""
    return logits - _log_sum_exp(logits)[..., None]


def _log_sum_exp(logits: Logits) -> Nats:
    return jnp.log(jnp.exp(logits).sum(-1))


def _expected(log_weights: Logits, values: Logits) -> Nats:
    return (jnp.exp(log_weights) * values).sum(-1)


def _mixed(first: Logits, second: Logits, share: float) -> Logits:
    """Log-probabilities of `share` of the first distribution and the rest of the second."""
    return jnp.logaddexp(math.log(share) + first, math.log1p(-share) + second)
