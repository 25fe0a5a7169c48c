"""Budgets: how the weights that stay are shared out among the matrices."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from ragjax.sparsity.patterns import Target


def uniform(target: float, weights: PyTree) -> Target:
    """The same sparsity everywhere.

    Args:
      target: sparsity.
      weights: the prunable weights; not used.
    """
    return target


def erdos_renyi(target: float, weights: PyTree) -> PyTree[float]:
    """Density in proportion to (in + out) / (in * out): small and narrow matrices keep more.

    A matrix whose density would exceed 1 stays whole, and the others make up for it.

    Args:
      target: sparsity of all weights together.
      weights: arrays [..., in, out], or anything with a shape.

    Returns:
      Sparsity of each parameter, the same for all its layers.

    References:
      Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity",
      https://arxiv.org/abs/1707.04780; Evci et al., "Rigging the Lottery",
      https://arxiv.org/abs/1911.11134.
    """
    leaves, structure = jax.tree.flatten(weights)
    ratios = [sum(leaf.shape[-2:]) / (leaf.shape[-2] * leaf.shape[-1]) for leaf in leaves]
    kept = (1 - target) * sum(leaf.size for leaf in leaves)
    # Those of the largest ratio are capped first; what is capped leaves less for the rest.
    order = sorted(range(len(leaves)), key=lambda i: -ratios[i])
    density = [1.0] * len(leaves)
    for place, first in enumerate(order):
        rest = order[place:]
        scale = kept / sum(ratios[i] * leaves[i].size for i in rest)
        if scale * ratios[first] <= 1:
            for i in rest:
                density[i] = scale * ratios[i]
            break
        kept -= leaves[first].size
    return jax.tree.unflatten(structure, [1 - d for d in density])


BUDGETS: dict[str, Callable[[float, PyTree], Target]] = {"uniform": uniform, "erk": erdos_renyi}
"""Budgets by their name in the config."""
