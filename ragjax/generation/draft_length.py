"""How many tokens a draft should have, from how often they are kept and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_PRIOR_HITS, _PRIOR_MISSES = 3.0, 1.0
"""What is believed of a draft before it was judged."""


def likely(hits: Float[Array, ""], misses: Float[Array, ""]) -> Float[Array, ""]:
    """How likely a drafted token is kept, after so many that were and so many drafts cut short."""
    hits, misses = hits + _PRIOR_HITS, misses + _PRIOR_MISSES
    return hits / (hits + misses)


def expected_tokens(length: Int[Array, "*lengths"], chance: Float[Array, ""]) -> Float[Array, "*lengths"]:
    """New tokens of a round: 1 + chance + ... + chance^length.

    Leviathan et al., https://arxiv.org/abs/2211.17192, equation 1.
    """
    chance = jnp.minimum(chance, 0.9999)
    return (1 - chance ** (length + 1)) / (1 - chance)


def best_length(
    menu: Sequence[int], costs: Float[Array, " lengths"], chance: Float[Array, ""]
) -> Int[Array, ""]:
    """Index of the length that gives most tokens for what its round costs.

    Args:
      menu: lengths to choose from.
      costs: of a round with each.
      chance: how likely a drafted token is kept.
    """
    rate = expected_tokens(jnp.asarray(menu, jnp.int32), chance) / costs
    return rate.argmax().astype(jnp.int32)


def round_costs(menu: Sequence[int], alone: float, longest: float) -> jax.Array:
    """Costs of rounds in units of one without a draft, each drafted token adding as much as the others.

    Args:
      menu: lengths, 0 first.
      alone: seconds of a round without a draft.
      longest: seconds of one with the longest draft.
    """
    each = max(longest / alone - 1, 0.01) / max(max(menu), 1)
    return jnp.asarray([1 + each * length for length in menu], jnp.float32)
