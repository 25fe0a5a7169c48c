"""Rotary positions: queries and keys are turned, so that their product depends on the distance alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ragjax.models.decoder_config import Rotary, RotaryScaling


class Angles(NamedTuple):
    """Cosine and sine of each token's angles, for the pairs of a head."""

    cosine: Float[Array, "#batch seq pairs"]
    sine: Float[Array, "#batch seq pairs"]


def angles(positions: Int[Array, "#batch seq"], rotary: Rotary, head_width: int) -> Angles:
    """The angles of tokens: position times frequency, for each pair of values of a head.

    Args:
      positions: position of each token.
      rotary: base, width and scaling.
      head_width: width of a head, the width that is turned where `rotary` names none.
    """
    frequency = frequencies(rotary, rotary.width or head_width)
    turned = positions[..., None].astype(jnp.float32) * frequency
    return Angles(jnp.cos(turned), jnp.sin(turned))


def frequencies(rotary: Rotary, width: int) -> Float[np.ndarray, " pairs"]:
    """Radians a token, base^(-2i / width) for pair i, scaled; in float32, as the models were trained with."""
    powers = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    # The power rounded once, as torch does: an error here grows with the position.
    frequency = np.float32(1) / (rotary.base ** powers.astype(np.float64)).astype(np.float32)
    scaling = rotary.scaling
    if scaling is None or scaling.kind == "dynamic":
        return frequency
    if scaling.kind == "linear":
        return frequency / np.float32(scaling.factor)
    return _llama3(frequency, scaling)


def _llama3(frequency: Float[np.ndarray, " pairs"], scaling: RotaryScaling) -> Float[np.ndarray, " pairs"]:
    """Long waves are divided by the factor, short ones left, those between in part.

    Llama 3.1; https://github.com/meta-llama/llama-models
    """
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequency / (2 * math.pi)
    whole = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - whole) * frequency / scaling.factor + whole * frequency).astype(np.float32)


def rotate(x: Float[Array, "batch seq heads head"], by: Angles) -> Float[Array, "batch seq heads head"]:
    """`x` with its leading values turned: the first half of them and the second are the pairs.

    Args:
      x: queries or keys.
      by: angles of as many pairs as are turned; what follows is left.
    """
    pairs = by.cosine.shape[-1]
    cosine, sine = by.cosine[:, :, None], by.sine[:, :, None]
    first, second = (x[..., i * pairs : (i + 1) * pairs].astype(jnp.float32) for i in (0, 1))
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), x[..., 2 * pairs :]], axis=-1)
