"""Networks as typed functions of (params, inputs)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int, Key

from ragjax.models.decoder import Decoder, DecoderOutput, Params
from ragjax.models.decoder_config import DecoderConfig


def apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
    """What `module` computes with `params`, and nothing besides.

    Flax's own `apply` may also hand back collections of variables; no network here changes any.

    Args:
      module: a Flax module whose only variables are parameters.
      params: its parameters.
      inputs: what it is called with.
      options: keywords of `flax.linen.Module.apply`, or of the call.
    """
    return module.apply({"params": params}, *inputs, **options)


def run_decoder(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array | np.ndarray, "batch seq"],
    *,
    positions: Int[Array | np.ndarray, "#batch seq"] | None = None,
    segments: Int[Array | np.ndarray, "batch seq"] | None = None,
    dtype: jnp.dtype = jnp.float32,
    remat: str = "none",
    dropout_key: Key[Array, ""] | None = None,
    capture: bool = False,
) -> DecoderOutput:
    """Runs a decoder up to its last norm.

    Args:
      config: the architecture.
      params: its parameters, float32.
      tokens: token ids.
      positions: position of each token; none: 0, 1, 2, ...
      segments: number of the document each token belongs to; attention stays inside it.
      dtype: type the blocks compute in.
      remat: what the backward pass computes again: "none", "dots" (all but matrix products), "full".
      dropout_key: random key of the dropout; none: without dropout.
      capture: also return every block's output, and what the first is given.

    Returns:
      The hidden states, which `ragjax.models.decoder.logits` turns into scores.
    """
    network = Decoder(config, dtype, remat, deterministic=dropout_key is None, capture=capture)
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return apply(network, params, tokens, positions=positions, segments=segments, rngs=rngs)
