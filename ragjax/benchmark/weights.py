"""In what types a model's weights lie in memory, and bytes of them that it reads to write a token."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from ragjax.interchange.layout import parameter_shapes
from ragjax.interchange.onnx.decoder import stored_head
from ragjax.interchange.onnx.weights import PRECISIONS, Precision
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.stand_ins import named_leaves
from ragjax.onnx_model import OnnxModel
from ragjax.quantization.quantized import Quantized

_FLOAT = 4


class WeightBytes(NamedTuple):
    """What a step of decoding reads."""

    shared: int
    """By all sequences of a batch together: matrices, norms, biases, and the table that scores tokens."""
    own: int
    """By each sequence: a row of every other table."""

    def of_step(self, batch: int) -> int:
        """Of a step that writes a token of each of so many sequences."""
        return self.shared + batch * self.own


def weight_bytes(model: Model | OnnxModel) -> WeightBytes:
    """What a step of a model reads, in the types in which its weights lie in memory.

    Keys and values come on top, as many as a text is long.
    """
    if isinstance(model, OnnxModel):
        return _of_graph(model.config, PRECISIONS[weight_type(model)])
    shared = own = 0
    for name, leaf in named_leaves(model.params):
        size = sum(part.nbytes for part in jax.tree.leaves(leaf))
        if _is_looked_up(name, model.config):
            own += size // leaf.shape[0]
        else:
            shared += size
    return WeightBytes(shared, own)


def weight_type(model: Model | OnnxModel) -> str:
    """The type in which the matrices of a model's blocks lie in memory.

    Returns:
      A type of `ragjax export --format onnx`; or a scheme of `ragjax quantize` or a type of JAX, and all of
      them where matrices differ.
    """
    if isinstance(model, OnnxModel):
        return model.session.get_modelmeta().custom_metadata_map["dtype"]
    kernels = [
        leaf for name, leaf in named_leaves(model.params)
        if name.startswith("layers/") and name.endswith("/kernel")
    ]  # fmt: skip
    return " and ".join(sorted({_type_of(kernel) for kernel in kernels}))


def _type_of(kernel: Any) -> str:
    if not isinstance(kernel, Quantized):
        return kernel.dtype.name
    return f"int{kernel.scheme.bits}{'_activations' if kernel.scheme.activations else ''}"


def _is_looked_up(name: str, config: DecoderConfig) -> bool:
    """Whether a step reads only a row of this parameter."""
    return name == "embedding/positions" or (name == "embedding/tokens" and not config.tied)


def _of_graph(config: DecoderConfig, precision: Precision) -> WeightBytes:
    """What a graph of `ragjax.interchange.onnx` reads."""
    shared = own = 0
    for name, shape in parameter_shapes(config).items():
        *path, part = name.split("/")
        looked_up, width = _is_looked_up(name, config), shape[-1]
        if name in ("embedding/tokens", "head"):
            size = _matrix(width, 1 if looked_up else config.vocab_size, precision.of_tables)
        elif name == "embedding/positions":
            size = width * _FLOAT
        else:
            if path[-1] in ("query", "key", "value"):
                width = _by_head(width, config)
            if part == "kernel":
                inputs = shape[-2]
                if path[-2:] == ["attention", "out"]:
                    inputs = _by_head(inputs, config)
                size = _matrix(inputs, width, precision)
            else:
                size = width * _FLOAT
            size *= config.layers if path[0] == "layers" else 1
        if looked_up:
            own += size
        else:
            shared += size
    return WeightBytes(shared, own)


def _by_head(width: int, config: DecoderConfig) -> int:
    """A width that heads share, with what fills up each of them in the graph."""
    return width // config.head_width * stored_head(config)


def _matrix(inputs: int, outputs: int, precision: Precision) -> int:
    if precision.bits == 32:
        return outputs * inputs * _FLOAT
    block = precision.block_of(inputs)
    blocks = -(-inputs // block)
    return outputs * blocks * (block * precision.bits // 8 + _FLOAT)
