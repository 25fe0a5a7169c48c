"""LLVM's text of attention to the keys up to a query's own, and of its backward pass: `causal*.ll`."""

from __future__ import annotations

import math
from pathlib import Path
from string import Template

from ragjax.kernels.block_parts import (
    block_declarations,
    block_tiles,
    copy_columns,
    copy_lines,
    multiply_rows,
    tile_rows,
)
from ragjax.kernels.exponential import exponential_function
from ragjax.kernels.machine import Vectors
from ragjax.kernels.vectors_text import all_lanes, constant, everywhere

_QUERIES, _KEYS = 256, 128
"""Of a block; in the backward pass it has as many queries as keys."""
_LOWEST, _TINY = -1e30, 2.0**-126
"""What the highest score of a query counts for at least, and its sum of exponentials."""


def forward_text(head: int, vectors: Vectors) -> str:
    """A kernel that attends.

    Args:
      head: width of a head.
      vectors: the processor's.
    """
    return "\n".join([_own("causal_forward.ll", head, vectors), _parts(vectors)])


def backward_text(head: int, vectors: Vectors) -> str:
    """A kernel that makes the gradients of what was attended to.

    Args:
      head: width of a head.
      vectors: the processor's.
    """
    most, lanes = tile_rows(vectors), vectors.lanes
    turned = [
        block_tiles("tile.columns", most, lanes, x_transposed=True),
        multiply_rows("multiply.columns", "tile.columns", most, lanes, x_transposed=True),
    ]
    own = _own("causal_backward.ll", head, vectors)
    return "\n".join([own, _parts(vectors), *turned])


def _own(name: str, head: int, vectors: Vectors) -> str:
    lanes, folder = vectors.lanes, Path(__file__).parent
    text = folder.joinpath("causal.ll").read_text() + folder.joinpath(name).read_text()
    return Template(text).substitute(
        head=head, lanes=lanes, vector=f"<{lanes} x float>", integers=f"<{lanes} x i32>",
        mask=f"<{lanes} x i1>", bytes=f"<{lanes} x i8>",
        queries=_QUERIES, queries_less_1=_QUERIES - 1, keys=_KEYS, scores=_QUERIES * _KEYS,
        square=_KEYS * _KEYS, panels=_KEYS * head, tiny=constant(_TINY), lowest=constant(_LOWEST),
        lowest_all=all_lanes(constant(_LOWEST), lanes), hidden=all_lanes(constant(-math.inf), lanes),
    )  # fmt: skip


def _parts(vectors: Vectors) -> str:
    most, lanes = tile_rows(vectors), vectors.lanes
    return "\n".join([
        copy_lines("copy.lines", lanes),
        copy_columns("copy.columns", lanes),
        block_tiles("tile", most, lanes, x_transposed=False),
        multiply_rows("multiply", "tile", most, lanes, x_transposed=False),
        block_declarations(lanes),
        everywhere(lanes),
        exponential_function(lanes),
    ])  # fmt: skip
