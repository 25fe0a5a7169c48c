"""LayerNorm and RMSNorm: functions that keep a value or two per row for the backward pass, and a layer."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ragjax.kernels.instead import by_kernel
from ragjax.kernels.norm import RowNorm, norm, norms_serve
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.residuals import keep, kept
from ragjax.parallel.pin import on_one_device


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


def norm_in_step(
    x: Float[Array, "... width"],
    scale: Float[Array, " width"],
    bias: Float[Array, " width"] | None,
    epsilon: float,
) -> Float[Array, "... width"]:
    """`layer_norm`, or `rms_norm` without a bias, in a program that writes tokens.

    Of few rows of float32 on one CPU it is one kernel, which `jax.export` refuses.

    Args:
      x: what is normalized over its last axis.
      scale: multiplies each feature.
      bias: is added to each feature.
      epsilon: added to the variance, or to the mean square.
    """
    given = (x, scale) if bias is None else (x, scale, bias)

    def plain(x, scale, *bias):
        return layer_norm(x, scale, *bias, epsilon) if bias else rms_norm(x, scale, epsilon)

    def by_rows(x, scale, *bias):
        rows = x.reshape(-1, x.shape[-1])
        return norm(rows, RowNorm(scale, *(bias or [None]), epsilon)).reshape(x.shape)

    serves = norms_serve(math.prod(x.shape[:-1]), x.shape[-1]) and on_one_device(*given)
    if serves and all(each.dtype == jnp.float32 for each in given):
        return by_kernel(by_rows, plain, *given)
    return plain(*given)


IN_PRODUCT = "in_product"
"""Among a norm's parameters, what says that the product that reads it begins with it, and has them."""


class Norm(nn.Module):
    """LayerNorm or RMSNorm, computed in float32."""

    config: DecoderConfig
    in_step: bool = False
    """Whether the program writes tokens, and nothing else is made of it."""

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        if self.has_variable("params", IN_PRODUCT):
            return x
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
        bias, epsilon = None, self.config.norm_epsilon
        if self.config.norm != "rms":
            bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32)
        if self.in_step:
            return norm_in_step(x, scale, bias, epsilon)
        return rms_norm(x, scale, epsilon) if bias is None else layer_norm(x, scale, bias, epsilon)
