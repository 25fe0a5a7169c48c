"""Blocks of 32 weights of Q8_0 and Q4_0, from the integers of a model that is quantized already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Int8, UInt8

from ragjax.interchange.layout import Layout, tensor_reader
from ragjax.models.decoder import Params
from ragjax.models.stand_ins import named_leaves
from ragjax.quantization.quantized import Quantized
from ragjax.quantization.table import QuantizedTable

BLOCK = 32
_BITS = {"Q8_0": 8, "Q4_0": 4}


class Integers(NamedTuple):
    """A kernel [layers, inputs, outputs] or a table, and its scales."""

    codes: Int8[np.ndarray, "..."]
    scale: Float16[np.ndarray, "..."]
    bits: int


def taken_over(params: Params, layout: Layout, kinds: dict[str, str]) -> dict[str, Callable[[], np.ndarray]]:
    """Tensors that hold a quantized model's own integers and scales, by name; each is made when asked for.

    Those are tensors whose weights are all symmetric and undivided, of groups that are whole blocks (or all
    inputs), in no more bits than the type of the tensor has.

    Args:
      params: parameters of which some are quantized.
      layout: where the tensors belong.
      kinds: type of each tensor, by name.
    """
    integers = {name: found for name, leaf in named_leaves(params) if (found := _integers(leaf))}
    codes = tensor_reader({name: each.codes for name, each in integers.items()}, layout)
    scales = tensor_reader({name: each.scale for name, each in integers.items()}, layout)

    def fits(name: str, targets: tuple[str, ...]) -> bool:
        if any(path not in integers for path in targets):
            return False
        held = [integers[path] for path in targets]
        same_groups = len({each.scale.shape[-2:-1] for each in held}) == 1
        return same_groups and all(each.bits <= _BITS.get(kinds[name], 0) for each in held)

    def made(name: str) -> np.ndarray:
        return encoded(codes(name), scales(name), kinds[name])

    return {
        stored.name: partial(made, stored.name)
        for stored in layout.stored
        if fits(stored.name, stored.targets)
    }


def _integers(leaf: object) -> Integers | None:
    if isinstance(leaf, QuantizedTable):
        return Integers(np.asarray(leaf.codes), np.asarray(leaf.scale)[:, None], 8)
    if not isinstance(leaf, Quantized) or leaf.zero is not None or leaf.input_scale is not None:
        return None
    if leaf.scheme.group % BLOCK:
        return None
    return Integers(np.asarray(leaf.unpacked()), np.asarray(leaf.scale), leaf.scheme.bits)


def encoded(
    codes: Int8[np.ndarray, "rows inputs"], scale: Float16[np.ndarray, "rows groups"], kind: str
) -> UInt8[np.ndarray, "rows bytes"]:
    """The bytes of blocks: a scale in 16 bits, then integers.

    Args:
      codes: integers; their inputs are whole blocks.
      scale: of each group of inputs; a group is whole blocks.
      kind: "Q8_0", or "Q4_0", whose integers lie in [-8, 7].
    """
    blocks = codes.reshape(len(codes), -1, BLOCK)
    by_block = np.repeat(scale, blocks.shape[1] // scale.shape[1], axis=1)
    if kind == "Q4_0":
        nibbles = (blocks + 8).astype(np.uint8)
        body = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
    else:
        body = blocks.view(np.uint8)
    head = np.ascontiguousarray(by_block.astype("<f2"))[..., None].view(np.uint8)
    return np.concatenate([head, body], axis=-1).reshape(len(codes), -1)
