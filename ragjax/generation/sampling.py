"""From scores to the next token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def next_token(
    scores: Float[Array, "batch vocab"], keys: Key[Array, " batch"], temperature: Float[Array, ""]
) -> Int[Array, " batch"]:
    """The likeliest token at temperature 0, else one drawn from softmax(scores / temperature).

    Args:
      scores: logits, without rows that only pad the vocabulary.
      keys: a random key for each sequence.
      temperature: at least 0; both cases are one program.
    """

    def draw():
        return jax.vmap(jax.random.categorical)(keys, scores / temperature)

    # Only the branch taken is computed, so that greedy decoding draws no random numbers.
    token = jax.lax.cond(temperature > 0, draw, lambda: jnp.argmax(scores, axis=-1))
    return token.astype(jnp.int32)


def nucleus(scores: Float[Array, "batch vocab"], mass: float) -> Float[Array, "batch vocab"]:
    """Scores with -inf at all but the fewest likeliest tokens whose probabilities together reach `mass`.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", https://arxiv.org/abs/1904.09751

    Args:
      scores: logits at the temperature of the draw.
      mass: above 0; tokens as likely as the last one that is kept are kept too.
    """
    ordered = jax.lax.top_k(jax.nn.softmax(scores), scores.shape[-1])[0]
    before = jnp.cumsum(ordered, -1) - ordered
    least = jnp.where(before < mass, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(jax.nn.softmax(scores) >= least, scores, -jnp.inf)


def sequence_keys(key: Key[Array, "*batch"], batch: int, step: Int[Array, ""]) -> Key[Array, " batch"]:
    """A key for each sequence and step, the same whatever else is in the batch.

    Args:
      key: of the whole generation; or one of each sequence, from `keys_of`.
      batch: how many sequences there are.
      step: which token of each is chosen.
    """
    own = key if key.ndim else keys_of(key, jnp.arange(batch))
    return jax.vmap(jax.random.fold_in, (0, None))(own, step)


def keys_of(key: Key[Array, ""], rows: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """The keys of the sequences of these numbers, whatever batches they come in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
