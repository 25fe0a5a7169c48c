"""LayerNorm and RMSNorm that keep a value or two per row, and their input, for the backward pass."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.models.residuals import keep, kept


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "... width"], scale: Float[Array, " width"], bias: Float[Array, " width"], epsilon: float
) -> Float[Array, "... width"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, computed in float32, in the type of `x`.

    Ba et al., "Layer Normalization", https://arxiv.org/abs/1607.06450

    Args:
      x: what is normalized over its last axis.
      scale: multiplies each feature.
      bias: is added to each feature.
      epsilon: added to the variance.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    centred = x.astype(jnp.float32)
    mean = centred.mean(-1, keepdims=True)
    centred = centred - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return (centred * inverse * scale + bias).astype(x.dtype), (keep(x), mean, inverse, scale)


def _backward(epsilon, saved, gradient):
    x, mean, inverse, scale = saved
    x = kept(x, gradient.dtype)
    gradient = gradient.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), (gradient * normal).sum(rows), gradient.sum(rows)


layer_norm.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(
    x: Float[Array, "... width"], scale: Float[Array, " width"], epsilon: float
) -> Float[Array, "... width"]:
    """x / sqrt(mean(x^2) + epsilon) * scale, computed in float32, in the type of `x`.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", https://arxiv.org/abs/1910.07467

    Args:
      x: what is normalized over its last axis.
      scale: multiplies each feature.
      epsilon: added to the mean square.
    """
    return _rms_forward(x, scale, epsilon)[0]


def _rms_forward(x, scale, epsilon):
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (wide * inverse * scale).astype(x.dtype), (keep(x), inverse, scale)


def _rms_backward(epsilon, saved, gradient):
    x, inverse, scale = saved
    x = kept(x, gradient.dtype)
    gradient = gradient.astype(jnp.float32)
    normal = x.astype(jnp.float32) * inverse
    scaled = gradient * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    dx = inverse * (scaled - normal * along)
    return dx.astype(x.dtype), (gradient * normal).sum(tuple(range(x.ndim - 1)))


rms_norm.defvjp(_rms_forward, _rms_backward)
