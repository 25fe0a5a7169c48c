"""What stays of a projection, refit so that it puts out what the whole one did."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ragjax.models.blockwise import run_block
from ragjax.models.decoder import LayerData, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.calibrated.calibration import on_device, over
from ragjax.sparsity.calibrated.gram import gram
from ragjax.sparsity.calibrated.residual_streams import Stream

DAMPING = 0.01
"""Added to the diagonal of the normal equations, as a share of its mean."""


class Refit(NamedTuple):
    """A projection with fewer inputs, and how near its outputs come to those of the whole one."""

    projection: Params
    """Its kernel, and its bias where it has one."""
    error_before: Float[Array, ""]
    """||Y - Y'|| / ||Y|| over the calibration text, where what stays is left as it was."""
    error: Float[Array, ""]
    """The same, refit."""


def input_gram(
    config: DecoderConfig,
    name: str,
    block: Params,
    data: LayerData,
    hidden: list[Float[Stream, "rows seq width"]],
    mesh: Mesh | None = None,
) -> Float[Array, "inputs inputs"]:
    """X'X of what one projection of a block is given; its bias is a weight of an input that is always 1.

    Args:
      config: the architecture.
      name: of the projection in the block: 'mlp/down'.
      block: the block's parameters.
      data: its scale and window.
      hidden: residual streams before it, one array a microbatch.
      mesh: devices that share the rows of a microbatch; none: JAX's default device.
    """
    total = None
    for x in hidden:
        with over(mesh):
            found = _gram(block, data, on_device(x, mesh), config=config, name=name)
            total = found if total is None else total + found
    assert total is not None
    return total


@partial(jax.jit, static_argnames=("config", "name"))
def _gram(
    block: Params, data: LayerData, hidden: Array, *, config: DecoderConfig, name: str
) -> Float[Array, "inputs inputs"]:
    x = run_block(config, block, data, hidden).inputs[f"{name}/kernel"]
    part, _, last = name.partition("/")
    if "bias" in block[part][last]:
        x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)
    return gram(x)


@jax.jit
def refit(projection: Params, products: Float[Array, "inputs inputs"], kept: Int[Array, " kept"]) -> Refit:
    """Least squares: W' = W_k + (G_kk + d I)^-1 G_kr W_r, where G = X'X, k is kept and r removed.

    W' minimizes ||X W - X_k W'||^2 + d ||W' - W_k||^2, so that its outputs are never further from the whole
    projection's than those of W_k are. A bias is refit along, which takes up the means of what is removed.
    As the reconstruction of He et al., "Channel Pruning", https://arxiv.org/abs/1707.06168

    Args:
      projection: kernel [in, out], and bias [out] where there is one.
      products: G, in float32; its last row and column are those of the bias, where there is one.
      kept: indices of the inputs that stay.
    """
    weights = projection["kernel"]
    if "bias" in projection:
        weights = jnp.concatenate([weights, projection["bias"][None]])
        kept = jnp.append(kept, len(weights) - 1)
    removed = weights.at[kept].set(0)
    own = products[jnp.ix_(kept, kept)]
    level = jnp.diagonal(own).mean()
    own += jnp.where(level > 0, DAMPING * level, 1) * jnp.eye(len(kept))
    towards = jnp.matmul(products[kept], removed, precision=jax.lax.Precision.HIGHEST)
    change = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(own), towards)
    new = weights[kept] + change

    def size(of: Float[Array, "inputs out"]) -> Float[Array, ""]:
        outputs = jnp.matmul(products, of, precision=jax.lax.Precision.HIGHEST)
        return jnp.sqrt(jnp.maximum((of * outputs).sum(), 0))

    whole = size(weights)
    before, after = size(removed), size(removed.at[kept].set(-change))
    small = {"kernel": new[:-1], "bias": new[-1]} if "bias" in projection else {"kernel": new}
    safe = jnp.where(whole > 0, whole, 1)
    return Refit(small, before / safe, after / safe)
