"""What is kept of a teacher's distributions, so that the teacher itself need not be there.

Either its likeliest tokens, with all others together as one more outcome: exact over those outcomes, where
the likeliest alone would be another distribution. Or tokens drawn from it: an estimate without bias of the
forward KL and its gradient, at any number of draws.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ragjax.distillation.losses import LOWEST, log_probs


class Likeliest(NamedTuple):
    """The k likeliest tokens of each distribution."""

    ids: Int[Array, "*tokens k"]
    log_probs: Float[Array, "*tokens k+1"]
    """Of each of them, and last of all others together."""


class Drawn(NamedTuple):
    """Tokens drawn from each distribution, a token as often as it came.

    References:
      Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs",
      https://arxiv.org/abs/2503.16870.
    """

    ids: Int[Array, "*tokens draws"]
    log_probs: Float[Array, "*tokens draws"]
    """Of each of them."""


def likeliest(logits: Float[Array, "*tokens vocab"], k: int) -> Likeliest:
    """What is kept of distributions by their k likeliest tokens.

    Args:
      logits: of all tokens, float32, the highest of each row 0.
      k: how many are told apart.
    """
    ids = jax.lax.top_k(logits, k)[1]
    return Likeliest(ids, log_probs(binned(logits, ids)))


def drawn(logits: Float[Array, "*tokens vocab"], draws: int, key: Key[Array, ""]) -> Drawn:
    """What is kept of distributions by drawing from them.

    By inversion of their sums, so that a draw needs one random number and not one for each token there is;
    probabilities below 2^-23 are drawn as if they were a multiple of it.

    Args:
      logits: of all tokens, float32, the highest of each row 0.
      draws: how many tokens are drawn from each.
      key: random key.
    """
    logs = log_probs(logits)
    sums = jnp.cumsum(jnp.exp(logs), -1)
    # Below the last sum also after rounding, so that nothing of probability 0 is drawn.
    heights = sums[..., -1:] * jax.random.uniform(key, (*logits.shape[:-1], draws))
    find = jnp.vectorize(partial(jnp.searchsorted, side="right"), signature="(v),(d)->(d)")
    ids = find(sums, heights)
    return Drawn(ids, jnp.take_along_axis(logs, ids, -1))


def binned(
    logits: Float[Array, "*tokens vocab"], ids: Int[Array, "*tokens k"]
) -> Float[Array, "*tokens k+1"]:
    """Logits of k tokens, and of all others together.

    Args:
      logits: of all tokens, float32, the highest of each row 0.
      ids: the k tokens, each once.

    Returns:
      Logits of k + 1 outcomes, of the same probabilities.
    """
    chosen = jnp.take_along_axis(logits, ids, -1)
    others = jnp.put_along_axis(logits, ids, LOWEST, axis=-1, inplace=False)
    # Where no other is left it stays finite.
    highest = jax.lax.stop_gradient(others.max(-1, keepdims=True))
    rest = highest + jnp.log(jnp.exp(others - highest).sum(-1, keepdims=True))
    return jnp.concatenate([chosen, rest], -1)
