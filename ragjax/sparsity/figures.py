"""How many parameters a model has, and how many of them are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.names import path_name
from ragjax.sparsity.masks import PRUNABLE, prunable

_VOCABULARY_ROWS = ("embedding/tokens", "head")


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
    chosen = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(prunable(params, patterns))}
    sizes, nonzeros = {}, {}
    for path, weights in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if name in _VOCABULARY_ROWS:
            weights = weights[: config.vocab_size]
        matrix = tuple(range(weights.ndim - min(weights.ndim, 2), weights.ndim))
        sizes[name] = weights.size
        nonzeros[name] = np.atleast_1d(np.asarray(jnp.count_nonzero(weights, axis=matrix), np.int64))
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
