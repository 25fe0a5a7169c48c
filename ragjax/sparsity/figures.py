"""How many parameters a model has, and how many of them are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.stand_ins import is_stand_in, named_leaves
from ragjax.parallel.hosts import to_host
from ragjax.sparsity.masks import PRUNABLE, prunable

VOCABULARY_ROWS = ("embedding/tokens", "head")
"""Parameters with a row for each token, and rows that pad the vocabulary."""


@dataclass(frozen=True)
class SparsityFigures:
    """Counts of the parameters a model really has: rows that only pad the vocabulary are left out."""

    parameters: int
    """All parameters; a tied output projection counts once."""
    nonzero_parameters: int
    """Those that are not 0."""
    sparsity_prunable: float
    """Share of zeros among the prunable weights."""
    sparsity_total: float
    """Share of zeros among all parameters."""
    by_layer: dict[str, tuple[float, ...]]
    """Share of zeros of each prunable parameter, by name: one figure a layer."""


def count_nonzeros(params: Params, vocab_size: int | None = None) -> dict[str, Int[np.ndarray, " matrices"]]:
    """Values that are not 0 in each parameter, by name: one count a matrix, wherever the arrays lie.

    Args:
      params: a tree of parameters.
      vocab_size: rows of the tables of tokens that are counted; none: all.
    """

    leaves = dict(named_leaves(params))

    def real(name: str, weights):
        return weights[:vocab_size] if name in VOCABULARY_ROWS else weights

    def count(name: str, weights: Any) -> jax.Array:
        if is_stand_in(weights):
            present = weights.nonzero()
            return jnp.count_nonzero(real(name, present), axis=_matrix_axes(present))
        # By their bits: devices may take a denormal number for 0.
        kind = jnp.dtype(f"uint{8 * weights.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(real(name, weights), kind)
        return jnp.count_nonzero(bits << 1, axis=_matrix_axes(weights))

    placed = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, jax.Array) or is_stand_in(leaf)}
    counts = to_host(jax.jit(lambda given: {n: count(n, weights) for n, weights in given.items()})(placed))
    # What lies on the host stays there: a device may not have room for it.
    on_host = {name: leaf for name, leaf in leaves.items() if name not in placed}
    counts |= {n: np.count_nonzero(real(n, leaf), axis=_matrix_axes(leaf)) for n, leaf in on_host.items()}
    return {name: np.atleast_1d(np.asarray(counts[name], np.int64)) for name in leaves}


def _matrix_axes(weights: jax.Array | np.ndarray) -> tuple[int, ...]:
    return tuple(range(max(weights.ndim - 2, 0), weights.ndim))


def sparsity_figures(
    params: Params, config: DecoderConfig, patterns: Sequence[str] = PRUNABLE
) -> SparsityFigures:
    """Counts zeros: logical sparsity, which says nothing of bytes or of speed.

    Args:
      params: parameters of a decoder.
      config: its architecture, which says how many rows of the vocabulary are real.
      patterns: names of the prunable parameters, as shell patterns.

    Raises:
      InputError: if a pattern matches no parameter.
    """
    chosen = {name for name, _ in named_leaves(prunable(params, patterns))}
    nonzeros = count_nonzeros(params, config.vocab_size)
    sizes = {
        name: leaf.size // leaf.shape[0] * config.vocab_size if name in VOCABULARY_ROWS else leaf.size
        for name, leaf in named_leaves(params)
    }
    total, kept = sum(sizes.values()), sum(int(n.sum()) for n in nonzeros.values())
    total_chosen = sum(sizes[name] for name in chosen)
    kept_chosen = sum(int(nonzeros[name].sum()) for name in chosen)
    return SparsityFigures(
        parameters=total,
        nonzero_parameters=kept,
        sparsity_prunable=1 - kept_chosen / total_chosen,
        sparsity_total=1 - kept / total,
        by_layer={
            name: tuple((1 - nonzeros[name] * nonzeros[name].size / sizes[name]).tolist())
            for name in sorted(chosen)
        },
    )
