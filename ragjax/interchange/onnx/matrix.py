"""A matrix on its way into a graph: floats, and the grid they lie on where a quantized model has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ragjax.quantization.quantized import Quantized
from ragjax.quantization.table import QuantizedTable


class Matrix(NamedTuple):
    """`values` divided by `divisor`, input by input."""

    values: Float[np.ndarray, "inputs outputs"]
    """float32; integers times `scale`, exactly, where there is one."""
    scale: Float[np.ndarray, "groups outputs"] | None = None
    """Of each group of inputs; none: the values lie on no grid that is symmetric."""
    bits: int = 32
    """Of the integers."""
    divisor: Float[np.ndarray, " inputs"] | None = None
    """Of the inputs of a product, or of the values; none: 1."""

    @property
    def whole(self) -> Float[np.ndarray, "inputs outputs"]:
        """The floats that it stands for."""
        return self.values if self.divisor is None else self.values / self.divisor[:, None]

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0: there are no scales."""
        return 0 if self.scale is None else len(self.values) // len(self.scale)

    def padded(self, width: int, filled: int) -> Matrix:
        """With zeros behind every `width` outputs, so that they are `filled`."""
        if width == filled:
            return self
        scale = None if self.scale is None else _padded(self.scale, width, filled)
        return self._replace(values=_padded(self.values, width, filled), scale=scale)

    def with_padded_inputs(self, width: int, filled: int) -> Matrix:
        """With zeros behind every `width` inputs, so that they are `filled`; then it has no scales."""
        if width == filled:
            return self
        return Matrix(_padded(self.whole.T, width, filled).T)


def matrix_of(leaf: Array | Quantized, layer: int | None = None) -> Matrix:
    """A kernel, or its part of a layer.

    Args:
      leaf: a parameter [layers, inputs, outputs], or [inputs, outputs] where there is no layer.
      layer: which.
    """
    if not isinstance(leaf, Quantized):
        return Matrix(_floats(leaf if layer is None else leaf[layer]))
    one = leaf if layer is None else jax.tree.map(lambda x: x[layer], leaf)
    if one.zero is not None:
        return Matrix(_floats(one.whole()))
    undivided = Quantized(one.codes, one.scale, None, None, one.scheme)
    divisor = None if one.input_scale is None else _floats(one.input_scale)
    return Matrix(_floats(undivided.whole()), _floats(one.scale), one.scheme.bits, divisor)


def table_of(leaf: Array | QuantizedTable, rows: int) -> Matrix:
    """The first rows of a table of tokens, as the kernel [width, rows] of the scores.

    Args:
      leaf: the table, [vocabulary, width].
      rows: how many there are in the graph.
    """
    if not isinstance(leaf, QuantizedTable):
        return Matrix(_floats(leaf)[:rows].T)
    return Matrix(_floats(leaf.whole())[:rows].T, _floats(leaf.scale)[None, :rows], 8)


def joined(parts: Sequence[Matrix]) -> Matrix:
    """Matrices of the same inputs as one; without scales where theirs are not alike in groups and divisor."""
    first, *others = parts
    alike = first.scale is not None and all(
        other.scale is not None
        and (other.bits, other.scale.shape[0]) == (first.bits, first.scale.shape[0])
        and _same(other.divisor, first.divisor)
        for other in others
    )
    if not alike:
        return Matrix(np.concatenate([part.whole for part in parts], -1))
    scales = [part.scale for part in parts if part.scale is not None]
    values = np.concatenate([part.values for part in parts], -1)
    return Matrix(values, np.concatenate(scales, -1), first.bits, first.divisor)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _padded(values: np.ndarray, width: int, filled: int) -> np.ndarray:
    parts = values.reshape(*values.shape[:-1], -1, width)
    padded = np.pad(parts, [(0, 0)] * (parts.ndim - 1) + [(0, filled - width)])
    return padded.reshape(*values.shape[:-1], -1)


def _floats(leaf: Array | np.ndarray) -> np.ndarray:
    return np.asarray(leaf).astype(np.float32, copy=False)
