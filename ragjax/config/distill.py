"""The losses a student learns by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked, at_least

Ramp = float | tuple[float, ...]
"""One number, or several that the training passes through at equal distances, along straight lines."""

DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
)
"""Fields that weigh losses between the teacher's and the student's distributions over the vocabulary."""

INNER = ("hidden_mse", "hidden_cosine", "relations")
"""Fields that weigh losses between what the two networks compute on the way."""


@dataclass(frozen=True)
class Distill(Checked):
    """What the student learns from: the weights of the losses that are summed.

    A weight is one number, or several that the training passes through at equal distances: 0 1 rises
    from 0 to 1. p is the teacher's distribution over the vocabulary, q the student's.
    """

    forward_kl: Ramp = 0.9
    """Weight of T^2 KL(p || q): the student covers all that the teacher does."""
    reverse_kl: Ramp = 0.0
    """Weight of T^2 KL(q || p): the student keeps to what the teacher finds likely."""
    jensen_shannon: Ramp = 0.0
    """Weight of T^2 (b KL(p || m) + (1 - b) KL(q || m)), m = b p + (1 - b) q, b the teacher_share."""
    skewed_forward_kl: Ramp = 0.0
    """Weight of T^2 KL(p || a p + (1 - a) q), a the skew."""
    skewed_reverse_kl: Ramp = 0.0
    """Weight of T^2 KL(q || a q + (1 - a) p), a the skew."""
    total_variation: Ramp = 0.0
    """Weight of T^2 times half the sum of |p - q|."""
    cross_entropy: Ramp = 0.1
    """Weight of the negative log-likelihood of the text itself."""
    hidden_mse: Ramp = 0.0
    """Weight of the mean squared error between hidden states of paired layers."""
    hidden_cosine: Ramp = 0.0
    """Weight of 1 less the cosine between hidden states of paired layers."""
    relations: Ramp = 0.0
    """Weight of the KL between self-attention relations (queries, keys, values) of one pair of layers."""
    temperature: Ramp = 1.0
    """Temperature T of both distributions in the losses over the vocabulary."""
    skew: float = 0.1
    """Share of the distribution the divergence is taken from in a skewed KL's mixture."""
    teacher_share: float = 0.5
    """Share of the teacher in the mixture of jensen_shannon."""
    top_k: int = 0
    """Likeliest tokens of the teacher that are told apart, all others being one outcome; 0: all tokens."""
    layer_map: Literal["uniform", "last"] | tuple[int, ...] = "uniform"
    """Teacher layer each student layer answers to in the hidden losses: the last of its equal share, the
    teacher's last layers, or one number for each student layer, -1 for none."""
    relation_layers: tuple[int, int] | None = None
    """relations: layer of the student and of the teacher; none: the last of each."""
    relation_heads: int | None = None
    """relations: heads both networks' queries, keys and values are cut into; none: as many as the teacher."""
    chunk_tokens: int = 128
    """Tokens per device whose vocabulary logits live at once."""

    @property
    def divergences(self) -> dict[str, Ramp]:
        """The weights of the losses over the vocabulary that are not 0 throughout."""
        return {name: getattr(self, name) for name in DIVERGENCES if asked(getattr(self, name))}

    @property
    def inner(self) -> dict[str, Ramp]:
        """The weights of the losses between what is inside the networks that are not 0 throughout."""
        return {name: getattr(self, name) for name in INNER if asked(getattr(self, name))}

    def _problems(self) -> list[str]:
        weights = (*DIVERGENCES, "cross_entropy", *INNER)
        found = [
            f"{name} must be at least 0 throughout, found {getattr(self, name)!r}"
            for name in weights
            if not all(x >= 0 for x in values(getattr(self, name)))
        ]
        found += at_least(self, 1, "chunk_tokens") + at_least(self, 0, "top_k")
        found += [
            f"{name} must name at least one number, found none"
            for name in (*weights, "temperature")
            if not values(getattr(self, name))
        ]
        if not all(t > 0 for t in values(self.temperature)):
            found.append(f"temperature must be above 0 throughout, found {self.temperature!r}")
        found += [
            f"{name} must lie between 0 and 1, found {getattr(self, name)!r}"
            for name in ("skew", "teacher_share")
            if not 0 < getattr(self, name) < 1
        ]
        if not any(asked(getattr(self, name)) for name in weights):
            found.append(f"at least one of {', '.join(weights)} must be above 0")
        if isinstance(self.layer_map, tuple) and (
            not any(x >= 0 for x in self.layer_map) or min(self.layer_map) < -1
        ):
            found.append(
                f"layer_map must name a teacher layer, from 0, and -1 for none; found {self.layer_map}"
            )
        if self.relation_heads is not None:
            found += at_least(self, 1, "relation_heads")
        return found


def values(ramp: Ramp) -> tuple[float, ...]:
    """The numbers a ramp passes through."""
    return ramp if isinstance(ramp, tuple) else (ramp,)


def asked(ramp: Ramp) -> bool:
    """Whether a weight is above 0 at any time."""
    return any(values(ramp))
