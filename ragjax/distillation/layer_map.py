"""Which layer of the teacher each layer of the student answers to."""

from __future__ import annotations

from typing import Literal

LayerMap = Literal["uniform", "last"] | tuple[int, ...]

Pairs = tuple[tuple[int, int], ...]
"""Layers of the student and of the teacher, from 0, of the pairs that are compared."""


def layer_pairs(layer_map: LayerMap, student_layers: int, teacher_layers: int) -> Pairs:
    """The pairs of layers a map names.

    Args:
      layer_map: "uniform": the last layer of each one's equal share of the teacher; "last": the last layers
        of both, one to one; or the teacher's layer of each student layer, -1 for none.
      student_layers: depth of the student.
      teacher_layers: depth of the teacher.

    References:
      "uniform" and "last" as compared in Jiao et al., "TinyBERT", https://arxiv.org/abs/1909.10351.

    Example:
      >>> layer_pairs("uniform", 3, 12)
      ((0, 3), (1, 7), (2, 11))
      >>> layer_pairs("last", 3, 12)
      ((0, 9), (1, 10), (2, 11))
      >>> layer_pairs((-1, 4, 11), 3, 12)
      ((1, 4), (2, 11))
    """
    if layer_map == "uniform":
        return tuple((i, -(-(i + 1) * teacher_layers // student_layers) - 1) for i in range(student_layers))
    if layer_map == "last":
        both = min(student_layers, teacher_layers)
        return tuple((student_layers - i, teacher_layers - i) for i in range(both, 0, -1))
    return tuple((i, layer) for i, layer in enumerate(layer_map) if layer >= 0)
