"""Which of the drafted tokens a model keeps, and its own token behind them.

Greedy, those it would have chosen itself; drawn, by the rejection rule of Leviathan et al.,
https://arxiv.org/abs/2211.17192, and Chen et al., https://arxiv.org/abs/2302.01318.

What is drawn at a place depends on the place and on what stands before it, never on where a draft began
or how long it was: each place has random keys of its own, and goes by the draft's proposal also where
the model's own token follows a draft that was kept whole.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ragjax.generation.decoding import Settings
from ragjax.generation.sampling import drawn, likeliest, sequence_keys, warped


class PlaceKeys(NamedTuple):
    """Random keys of each place."""

    draft: Key[Array, "batch places"]
    """Of the token that is proposed."""
    chance: Key[Array, "batch places"]
    """Of whether it is kept."""
    own: Key[Array, "batch places"]
    """Of the model's own token, where it is not."""


def place_keys(key: Key[Array, "*batch"], first: Int[Array, " batch"], places: int) -> PlaceKeys:
    """Keys of so many new tokens of each sequence, from number `first` on.

    Args:
      key: of the whole generation, or one of each sequence.
      first: number of the first of the new tokens; the one that follows the prompt is number 0.
      places: how many.
    """
    numbers = first[:, None] + jnp.arange(places)
    keys = jax.vmap(partial(sequence_keys, key, len(first)), 1, 1)(numbers)
    parts = jax.vmap(jax.vmap(lambda key: jax.random.split(key, 3)))(keys)
    return PlaceKeys(parts[..., 0], parts[..., 1], parts[..., 2])


def judged(
    scores: Float[Array, "batch places vocab"],
    drafts: Float[Array, "batch places vocab"],
    tokens: Int[Array, "batch places"],
    proposed: Int[Array, ""],
    length: Int[Array, ""],
    keys: PlaceKeys,
    drawing: Bool[Array, " batch"],
    settings: Settings,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """How many of the proposed tokens the model agrees with, and its token at the first other place.

    The model's token stands at place `length` at the latest, where it knows no more than what a draft of
    that length told it.

    Args:
      scores: logits of the model at each place.
      drafts: logits of what each token was chosen by.
      tokens: what is proposed.
      proposed: how many of them there are: `length` or one more; one more where a sequence draws.
      length: how many the model has read.
      keys: of the places.
      drawing: which sequences draw; the others take the likeliest token.
      settings: how tokens are chosen.
    """
    there = jnp.arange(tokens.shape[1]) < proposed

    def leading(agreed):
        return jnp.cumprod(agreed & there, axis=1, dtype=jnp.int32).sum(1)

    def greedy():
        own = likeliest(scores)
        agreed = leading(own == tokens)
        return agreed, _at(own, jnp.minimum(agreed, length))

    def sampled():
        of_both = jnp.concatenate([scores, drafts], 1)
        p, q = jnp.split(jax.nn.softmax(warped(of_both, settings.temperature, settings.filters)), 2, 1)
        of_model, of_draft = (jnp.take_along_axis(each, tokens[..., None], 2)[..., 0] for each in (p, q))
        chance = jax.vmap(jax.vmap(jax.random.uniform))(keys.chance)
        agreed = leading(chance * of_draft < of_model)
        place = jnp.minimum(agreed, length)
        p, q = _at(p, place), _at(q, place)
        left = jnp.maximum(p - q, 0.0)
        # Nothing is left where both are alike but for rounding.
        left = jnp.where(left.sum(-1, keepdims=True) > 0, left, p)
        own = drawn(jnp.log(left), _at(keys.own, place))
        return agreed, jnp.where(agreed > length, _at(tokens, place), own)

    def both():
        return jax.tree.map(partial(jnp.where, drawing), sampled(), greedy())

    return jax.lax.cond(drawing.any(), both, greedy)


def _at(rows: jax.Array, place: Int[Array, " batch"]) -> jax.Array:
    """What each sequence has at its place."""
    return rows[jnp.arange(len(place)), place]
