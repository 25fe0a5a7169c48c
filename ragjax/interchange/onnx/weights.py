"""Matrices of a graph: float32, or integers of 8 or 4 bits with a scale for every block of inputs.

Blocks are quantized to nearest, symmetrically: a value is `scale * (code - 2^(bits - 1))`, where the largest
of a block in size has the code 0 and comes back exactly. A zero stays zero. The operator MatMulNBits reads
the codes as they are; it rounds what it multiplies with them to 8 bits by the same blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from ragjax.interchange.onnx.graph import CONTRIB, Graph


class Precision(NamedTuple):
    """How the weights of matrices are stored."""

    bits: int
    """32: as they are; 8 or 4: in blocks."""
    block: int = 0
    """Inputs that share a scale, at most; 0: there are no scales."""

    def block_of(self, inputs: int) -> int:
        """Inputs that share a scale in a matrix of so many, which they divide where 32 does."""
        return max(_SMALLEST, math.gcd(inputs, self.block))

    @property
    def of_tables(self) -> Precision:
        """How tables of tokens are stored."""
        return self._replace(bits=max(self.bits, TABLE_BITS))


TABLE_BITS = 8
"""The fewest bits of tables of tokens."""
_SMALLEST = 32
PRECISIONS = {
    "float32": Precision(32),
    "int8": Precision(8, 32),
    "int8_128": Precision(8, 128),
    "int4": Precision(4, 32),
}
"""How weights can be stored, by the name of the type."""


class Blocks(NamedTuple):
    """A quantized matrix."""

    codes: UInt8[np.ndarray, "outputs blocks bytes"]
    """Of 4 bits two a byte, the first in the lower half."""
    scales: Float[np.ndarray, "outputs blocks"]


def quantize(matrix: Float[np.ndarray, "outputs inputs"], bits: int, block: int) -> Blocks:
    """Rounds each row block by block; the last one is filled up with zeros.

    Args:
      matrix: float32.
      bits: 8 or 4.
      block: values that share a scale.
    """
    outputs, inputs = matrix.shape
    filled = np.pad(matrix, ((0, 0), (0, -inputs % block))).reshape(outputs, -1, block)
    largest = np.take_along_axis(filled, np.abs(filled).argmax(-1, keepdims=True), -1)
    middle = 1 << (bits - 1)
    scales = largest / np.float32(-middle)
    # A block so small that its scale has no inverse becomes 0; one that is not finite is told by its scale.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(np.abs(scales) < np.finfo(np.float32).tiny, np.float32(0), 1 / scales)
        codes = np.clip(np.rint(filled * inverse) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return Blocks(codes, scales[..., 0])


def product(
    graph: Graph,
    x: str,
    name: str,
    kernel: Float[np.ndarray, "inputs outputs"],
    bias: Float[np.ndarray, " outputs"] | None,
    precision: Precision,
) -> str:
    """x @ kernel + bias, for any leading axes of `x`."""
    offset = "" if bias is None else graph.constant(f"{name}.bias", bias)
    if precision.bits == 32:
        out = graph.node("MatMul", x, graph.constant(f"{name}.weight", kernel))
        return graph.node("Add", out, offset) if offset else out
    codes, scales = _blocks(graph, name, kernel.T, precision)
    return _quantized_product(graph, x, codes, scales, offset, kernel.shape, precision)


def scores(
    graph: Graph,
    x: str,
    name: str,
    table: Float[np.ndarray, "outputs inputs"],
    precision: Precision,
) -> str:
    """x @ table', where `x` has two axes; the constants are those that `rows` reads of the same name."""
    if precision.bits == 32:
        return graph.node("Gemm", x, graph.constant(f"{name}.weight", table), transB=1)
    codes, scales = _blocks(graph, name, table, precision.of_tables)
    return _quantized_product(graph, x, codes, scales, "", table.T.shape, precision.of_tables)


def rows(
    graph: Graph, index: str, name: str, table: Float[np.ndarray, "rows width"], precision: Precision
) -> str:
    """The rows of a table at `index`, as float32 with one more axis."""
    if precision.bits == 32:
        return graph.node("Gather", graph.constant(f"{name}.weight", table), index)
    codes, scales = _blocks(graph, name, table, precision.of_tables)
    width = table.shape[1]
    middle = graph.constant("table_middle", np.array(1 << (TABLE_BITS - 1), np.float32))
    values = graph.node("Cast", graph.node("Gather", codes, index), to=1)
    scale = graph.node("Unsqueeze", graph.node("Gather", scales, index), graph.number(-1))
    values = graph.node("Mul", graph.node("Sub", values, middle), scale)
    filled = width + -width % precision.block_of(width)
    flat = graph.node("Reshape", values, graph.constant(f"flat.{filled}", np.array([0, 0, filled])))
    if filled == width:
        return flat
    return graph.node("Slice", flat, graph.number(0), graph.number(width), graph.number(2))


def _blocks(graph: Graph, name: str, matrix: np.ndarray, precision: Precision) -> tuple[str, str]:
    """The names of a quantized matrix [outputs, inputs] in the graph, where it is put if it is not there."""
    codes, scales = f"{name}.codes", f"{name}.scales"
    if not graph.has(codes):
        blocks = quantize(matrix, precision.bits, precision.block_of(matrix.shape[1]))
        graph.constant(codes, blocks.codes)
        graph.constant(scales, blocks.scales)
    return codes, scales


def _quantized_product(
    graph: Graph, x: str, codes: str, scales: str, offset: str, shape: tuple[int, ...], precision: Precision
) -> str:
    inputs = [x, codes, scales, *(["", "", offset] if offset else [])]
    # Level 4: what is multiplied may be rounded to 8 bits, so that the processor's integer products serve.
    return graph.node(
        "MatMulNBits", *inputs, domain=CONTRIB, K=shape[0], N=shape[1], bits=precision.bits,
        block_size=precision.block_of(shape[0]), accuracy_level=4,
    )  # fmt: skip
