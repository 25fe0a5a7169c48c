"""Matrices that turn a student's hidden states to the width of its teacher's, learnt with the student.

They stand beside the student's parameters while it trains, under a name that no network reads, and are
thrown away at the end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.config import Distill
from ragjax.distillation.hidden import HIDDEN
from ragjax.distillation.layer_map import layer_pairs
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.matmul import matmul

NAME = "projections"


def with_projections(
    params: Params, student: DecoderConfig, teacher: DecoderConfig | None, weights: Distill, *, seed: int
) -> Params:
    """The parameters to be trained: the student's, and a projection for each pair of layers.

    Args:
      params: the student's.
      student: its architecture.
      teacher: that of the teacher its hidden states are compared with; none: nothing is added.
      weights: weights of the losses. Where none is of hidden states, nothing is added.
      seed: of the projections, normal with variance 1 / inputs, so that they keep a state's length.
    """
    if teacher is None or teacher.width == student.width or not HIDDEN.keys() & weights.inner.keys():
        return params
    pairs = layer_pairs(weights.layer_map, student.layers, teacher.layers)
    shape = (len(pairs), student.width, teacher.width)
    drawn = jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    return {**params, NAME: {"hidden": drawn * student.width**-0.5}}


def without_projections(params: Params) -> Params:
    """The student's own parameters."""
    return {name: value for name, value in params.items() if name != NAME}


def projected(
    params: Params, states: Float[Array, "pairs batch seq student_width"]
) -> Float[Array, "pairs batch seq teacher_width"]:
    """States in the teacher's width; as they are where there is no projection.

    Args:
      params: as `with_projections` makes them.
      states: outputs of the student's blocks, one for each pair.
    """
    return jax.vmap(matmul)(states, params[NAME]["hidden"]) if NAME in params else states
