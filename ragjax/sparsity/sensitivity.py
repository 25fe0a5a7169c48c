"""Curves of loss against sparsity, and the budget they ask for."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ragjax.errors import InputError


class Sensitivity(NamedTuple):
    """How much the loss grows when one matrix alone is pruned."""

    sparsities: tuple[float, ...]
    """Shares of a matrix's weights that were removed, rising, without 0."""
    dense: float
    """Loss of the dense model, nats per token."""
    loss: dict[str, Float[np.ndarray, "layers sparsities"]]
    """Loss with one matrix of one layer pruned, by the name of its kernel: 'layers/mlp/up/kernel'."""


def budget(
    curves: Sensitivity, sizes: dict[str, int], target: float
) -> dict[str, Float[np.ndarray, " layers"]]:
    """The sparsities that reach a target at the least loss, as far as losses of single matrices add up.

    Each curve is replaced by its lower convex hull from (0, the dense loss) on. Weights then go where
    the loss grows least for each, until the target is reached: the optimum of that linear program.

    Args:
      curves: how each matrix of each layer bears pruning.
      sizes: weights of one layer of each kernel, by name.
      target: sparsity of all of them together.

    Returns:
      Sparsity of each layer of each kernel, by name; none above the highest that was measured.

    Raises:
      InputError: the target is higher than that.
    """
    highest = curves.sparsities[-1]
    if not 0 <= target <= highest:
        raise InputError(
            f"A budget between 0 and {highest:g}, the highest sparsity that was measured, was expected, "
            f"found {target:g}: measure higher ones."
        )
    steps = []
    for name, losses in curves.loss.items():
        for layer, curve in enumerate(losses):
            hull = _lower_hull(np.array([0.0, *curves.sparsities]), np.array([curves.dense, *curve]))
            for (s0, l0), (s1, l1) in pairwise(hull):
                slope = (l1 - l0) / ((s1 - s0) * sizes[name])
                steps.append((slope, name, layer, s1 - s0))
    given = {name: np.zeros(len(losses)) for name, losses in curves.loss.items()}
    left = target * sum(sizes[name] * len(losses) for name, losses in curves.loss.items())
    for _, name, layer, width in sorted(steps):
        taken = min(width, max(left, 0) / sizes[name])
        given[name][layer] += taken
        left -= taken * sizes[name]
    return given


def _lower_hull(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """Corners of the lower convex hull of points whose x rise."""
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) > 1 and _turns_right(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_right(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])
