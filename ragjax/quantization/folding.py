"""Divisions of a matrix's inputs, done by what makes those inputs: a norm, or a matrix before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.models.decoder_config import DecoderConfig

_HOMOGENEOUS = ("relu", "leaky_relu", "linear")
"""Activations f with f(x / s) == f(x) / s for every s > 0."""

_NORMS = {"attention/query/kernel": "attention_norm", "mlp/up/kernel": "mlp_norm"}
"""The norm that makes what a matrix reads."""


class Maker(NamedTuple):
    """What makes the inputs of matrices, in proportion to its own parameters."""

    leaves: tuple[str, ...]
    """Those parameters, whose last axis is divided."""
    copies: int = 1
    """Inputs that each of them makes: a head of values serves several heads of queries."""


def maker(config: DecoderConfig, group: tuple[str, ...]) -> Maker | None:
    """What can divide the inputs of matrices that read the same; none: nothing can.

    Norms divide for the matrices behind them, unless they stand in the residual stream; values for the
    attention's output; the gated product, or an activation that lets a factor through, for the second
    matrix of an MLP.

    Args:
      config: the architecture.
      group: names of all kernels of a block that read the same.
    """
    norm = next((norm for reader, norm in _NORMS.items() if reader in group), None)
    if norm is not None:
        bias = () if config.norm == "rms" else (f"{norm}/bias",)
        return None if config.residual == "post_norm" else Maker((f"{norm}/scale", *bias))
    if "attention/out/kernel" in group:
        bias = ("attention/value/bias",) if config.attention_bias else ()
        return Maker(("attention/value/kernel", *bias), config.heads // config.key_value_heads)
    if "mlp/down/kernel" in group and (config.gated or config.activation in _HOMOGENEOUS):
        bias = ("mlp/up/bias",) if config.mlp_bias else ()
        return Maker(("mlp/up/kernel", *bias))
    return None


def tied(config: DecoderConfig, made_by: Maker | None, divisors: Float[Array, " in"]) -> Float[Array, " in"]:
    """The divisors, alike (their geometric mean) where one parameter makes several inputs.

    Args:
      config: the architecture.
      made_by: what is to divide.
      divisors: of each input, above 0.
    """
    if made_by is None or made_by.copies == 1:
        return divisors
    by_head = _by_head(config, made_by, jnp.log(divisors))
    return jnp.exp(jnp.broadcast_to(by_head.mean(1, keepdims=True), by_head.shape)).reshape(-1)


def folded(
    config: DecoderConfig,
    leaves: Mapping[str, Float[Array, "..."]],
    group: tuple[str, ...],
    made_by: Maker | None,
    divisors: Float[Array, " in"],
) -> dict[str, Float[Array, "..."]]:
    """The parameters of a block that change where inputs are divided and their weights multiplied.

    The block computes what it did before.

    Args:
      config: the architecture.
      leaves: the block's parameters.
      group: names of all kernels that read the inputs.
      made_by: what divides; none: nothing changes.
      divisors: from `tied`.
    """
    if made_by is None:
        return {}
    own = _by_head(config, made_by, divisors)[:, 0].reshape(-1)
    readers = {name: leaves[name] * divisors[:, None] for name in group}
    return readers | {name: leaves[name] / own for name in made_by.leaves}


def _by_head(
    config: DecoderConfig, made_by: Maker, values: Float[Array, " in"]
) -> Float[Array, "heads copies head"]:
    head = config.head_width if made_by.copies > 1 else 1
    return values.reshape(-1, made_by.copies, head)
