"""Scores: what makes a weight worth keeping. The lowest go first."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ragjax.models.names import path_name

Scores: TypeAlias = PyTree[Float[Array, "..."]]


class Evidence(NamedTuple):
    """What a score may look at: trees alike, with None where a weight may not be pruned."""

    weights: PyTree[Float[Array, "... in out"]]
    """The prunable weights."""
    key: Key[Array, ""]
    """Random key of this choice."""
    gradients: PyTree[Float[Array, "... in out"]] | None = None
    """Gradient of the loss by each weight; none where nobody computed it."""
    input_norms: PyTree[Float[Array, "... in"]] | None = None
    """Euclidean norm of each input over all tokens of a calibration text; none where nobody measured it."""


class Score(NamedTuple):
    """What makes a weight worth keeping."""

    rank: Callable[[Evidence], Scores]
    """From the evidence to scores of the weights' shapes; the lowest go first."""
    needs: str | None = None
    """Field of `Evidence` that must be there besides weights and key."""


def magnitude(seen: Evidence) -> Scores:
    """|w|.

    Args:
      seen: its weights are used.

    Returns:
      Scores of the weights' shapes.
    """
    return jax.tree.map(jnp.abs, seen.weights)


def random(seen: Evidence) -> Scores:
    """Uniform in [0, 1), drawn for each weight by its parameter's name and its place.

    The draw does not depend on the other parameters, nor on how the weight is sharded.

    Args:
      seen: its key, and the weights' names and shapes, are used.

    Returns:
      Scores of the weights' shapes.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, w: jax.random.uniform(
            jax.random.fold_in(seen.key, np.uint32(zlib.crc32(path_name(path).encode()))), w.shape
        ),
        seen.weights,
    )


def saliency(seen: Evidence) -> Scores:
    """|w g|: how much the loss changes, to first order, if the weight goes.

    Args:
      seen: its weights and gradients are used.

    Returns:
      Scores of the weights' shapes.

    Reference:
      Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
      https://arxiv.org/abs/1611.06440
    """
    return jax.tree.map(lambda w, g: jnp.abs(w * g), seen.weights, seen.gradients)


def wanda(seen: Evidence) -> Scores:
    """|w| times the norm of the weight's input; ranked within an output row by the paper.

    Args:
      seen: its weights and norms of inputs are used.

    Returns:
      Scores of the weights' shapes.

    Reference:
      Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
      https://arxiv.org/abs/2306.11695
    """
    return jax.tree.map(lambda w, norm: jnp.abs(w) * norm[..., :, None], seen.weights, seen.input_norms)


def ria(seen: Evidence) -> Scores:
    """Relative importance and activations: (|w| / its input's sum + |w| / its output's sum) * norm^0.5.

    Args:
      seen: its weights and norms of inputs are used.

    Returns:
      Scores of the weights' shapes; 0 for weights that are 0.

    Reference:
      Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
      https://openreview.net/forum?id=Tr0lPx9woF
    """

    def score(w, norm):
        size = jnp.abs(w)
        tiny = jnp.finfo(size.dtype).tiny
        by_input, by_output = (jnp.maximum(size.sum(axis, keepdims=True), tiny) for axis in (-1, -2))
        return (size / by_input + size / by_output) * jnp.sqrt(norm)[..., :, None]

    return jax.tree.map(score, seen.weights, seen.input_norms)


SCORES: dict[str, Score] = {
    "magnitude": Score(magnitude),
    "random": Score(random),
    "saliency": Score(saliency, needs="gradients"),
    "wanda": Score(wanda, needs="input_norms"),
    "ria": Score(ria, needs="input_norms"),
}
"""Scores by their name in the config."""
