"""Matrices of a graph: float32, or integers of 8 or 4 bits with a scale for every block of inputs.

Blocks are quantized to nearest, symmetrically: a value is `scale * (code - 2^(bits - 1))`, where the largest
of a block in size has the code 0 and comes back exactly. A zero stays zero. Of a quantized model the integers
and scales are its own, where the blocks can say them. The operator MatMulNBits reads the codes as they are;
it rounds what it multiplies with them to 8 bits by the same blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from ragjax.interchange.onnx.graph import CONTRIB, Graph
from ragjax.interchange.onnx.matrix import Matrix


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
    return _packed(codes, scales[..., 0], bits)


def _packed(codes: UInt8[np.ndarray, "outputs blocks block"], scales: np.ndarray, bits: int) -> Blocks:
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return Blocks(codes, scales)


def keeps(matrix: Matrix, precision: Precision) -> bool:
    """Whether the integers of a matrix, and their scales, go into its blocks as they are."""
    inputs = len(matrix.values)
    block = precision.block_of(inputs) if precision.block else 0
    return bool(block and matrix.group and not matrix.group % block and matrix.bits <= precision.bits)


def taken_over(matrix: Matrix, bits: int, block: int) -> Blocks:
    """The blocks of a matrix that `keeps` its integers.

    Args:
      matrix: its groups of inputs are whole blocks.
      bits: 8 or 4, no fewer than it has.
      block: values that share a scale.
    """
    assert matrix.scale is not None
    middle = 1 << (bits - 1)
    by_input = np.repeat(matrix.scale, matrix.group, 0)
    codes = np.divide(matrix.values, by_input, out=np.zeros_like(matrix.values), where=by_input != 0)
    codes = (np.rint(codes) + middle).astype(np.uint8).T.reshape(matrix.values.shape[1], -1, block)
    return _packed(codes, by_input[::block].T, bits)


def product(
    graph: Graph,
    x: str,
    name: str,
    kernel: Matrix,
    bias: Float[np.ndarray, " outputs"] | None,
    precision: Precision,
) -> str:
    """x @ kernel + bias, for any leading axes of `x`."""
    offset = "" if bias is None else graph.constant(f"{name}.bias", bias)
    if precision.bits == 32:
        out = graph.node("MatMul", x, graph.constant(f"{name}.weight", kernel.whole))
        return graph.node("Add", out, offset) if offset else out
    if kernel.divisor is not None and keeps(kernel, precision):
        x = graph.node("Div", x, graph.constant(f"{name}.input_scale", kernel.divisor))
    codes, scales = _blocks(graph, name, kernel, precision)
    return _quantized_product(graph, x, codes, scales, offset, kernel.values.shape, precision)


def scores(
    graph: Graph,
    x: str,
    name: str,
    table: Matrix,
    precision: Precision,
) -> str:
    """x @ table, where `x` has two axes; the constants are those that `rows` reads of the same name."""
    if precision.bits == 32:
        return graph.node("Gemm", x, graph.constant(f"{name}.weight", table.whole.T), transB=1)
    codes, scales = _blocks(graph, name, table, precision.of_tables)
    return _quantized_product(graph, x, codes, scales, "", table.values.shape, precision.of_tables)


def rows(graph: Graph, index: str, name: str, table: Matrix, precision: Precision) -> str:
    """The columns of a table [width, tokens] at `index`, as rows of float32."""
    if precision.bits == 32:
        return graph.node("Gather", graph.constant(f"{name}.weight", table.whole.T), index)
    codes, scales = _blocks(graph, name, table, precision.of_tables)
    width = len(table.values)
    middle = graph.constant("table_middle", np.array(1 << (TABLE_BITS - 1), np.float32))
    values = graph.node("Cast", graph.node("Gather", codes, index), to=1)
    scale = graph.node("Unsqueeze", graph.node("Gather", scales, index), graph.number(-1))
    values = graph.node("Mul", graph.node("Sub", values, middle), scale)
    filled = width + -width % precision.block_of(width)
    flat = graph.node("Reshape", values, graph.constant(f"flat.{filled}", np.array([0, 0, filled])))
    if filled == width:
        return flat
    return graph.node("Slice", flat, graph.number(0), graph.number(width), graph.number(2))


def _blocks(graph: Graph, name: str, matrix: Matrix, precision: Precision) -> tuple[str, str]:
    """The names of a quantized matrix in the graph, where it is put if it is not there."""
    codes, scales = f"{name}.codes", f"{name}.scales"
    if not graph.has(codes):
        bits, block = precision.bits, precision.block_of(len(matrix.values))
        own = keeps(matrix, precision)
        blocks = taken_over(matrix, bits, block) if own else quantize(matrix.whole.T, bits, block)
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
