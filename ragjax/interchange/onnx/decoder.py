"""A decoder as a graph: new tokens and buffers of keys and values in, scores of the next token out.

    tokens                       int32 [batch, new]      a prompt each, flush left; or one token each
    lengths                      int32 [batch]           tokens of each text so far, these among them
    past_key_values.I.key        float32 [batch, kv_heads, room, head]   of layer I; and .value
    logits                       float32 [batch, vocabulary]             of the token after the last
    present.I.key, present.I.value                       the buffers, with the new tokens' keys

A row's first new token stands at place `lengths - new` of the buffers, or at 0 where a prompt is shorter
than the longest: what follows it there is overwritten by what is written next, and not seen before. Past
and present may be the same memory, so that nothing is copied; attention is onnxruntime's operator
GroupQueryAttention, which takes each row to be as long as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ragjax.interchange.onnx.activations import OPERATORS
from ragjax.interchange.onnx.graph import CONTRIB, Graph
from ragjax.interchange.onnx.matrix import Matrix, joined, matrix_of, table_of
from ragjax.interchange.onnx.weights import Precision, keeps, product, rows, scores
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.rotary import angles

HEAD_MULTIPLE = 8
"""Values of a head are a multiple of it, as the attention operator asks; zeros fill it up."""


class _Places(NamedTuple):
    """Where the new tokens stand, as names in the graph."""

    positions: str
    """int64 [batch, new]."""
    before: str
    """Places of each row before its last token, int32 [batch]."""
    longest: str
    """Places of the longest row, int32 [1]."""
    last: str
    """Index of each row's last new token, int64 [batch, 1]."""


def stored_head(config: DecoderConfig) -> int:
    """Width of a head in the buffers."""
    return config.head_width + -config.head_width % HEAD_MULTIPLE


class Kept(NamedTuple):
    """What became of a quantized model's integers."""

    matrices: int
    """Products of the graph, with tables of tokens."""
    kept: int
    """Those of them that hold the model's own integers and scales."""


def write_decoder(graph: Graph, params: Params, config: DecoderConfig, precision: Precision) -> Kept:
    """Writes a decoder and its parameters to a graph.

    Args:
      graph: an empty graph.
      params: the parameters, with stacked layers; some may be quantized.
      config: the architecture.
      precision: how matrices are stored; norms, biases and learned positions are float32.
    """
    writer = _Writer(graph, params, config, precision)
    writer.write()
    return Kept(len(writer.kept), sum(writer.kept.values()))


class _Writer:
    def __init__(self, graph: Graph, params: Params, config: DecoderConfig, precision: Precision):
        self._graph, self._params, self._config, self._precision = graph, params, config, precision
        self._head = stored_head(config)
        self.kept: dict[str, bool] = {}
        """Of each matrix, by name, whether the model's integers were taken over."""

    def write(self) -> None:
        graph, config = self._graph, self._config
        tokens = graph.input("tokens", np.int32, ["batch", "new"])
        places = self._places(tokens, graph.input("lengths", np.int32, ["batch"]))
        x, addend = self._embedding(tokens, places.positions), ""
        for layer in range(config.layers):
            x, addend = self._block(x, addend, layer, places)
        hidden = self._final(x, addend)
        hidden = graph.node("GatherND", hidden, places.last, batch_dims=1)
        if config.embedding_width:
            kernel = matrix_of(self._params["output_projection"]["kernel"])
            hidden = self._product(hidden, "output_projection", kernel, None)
        graph.node("Identity", self._scores(hidden), name="logits")
        graph.output("logits", np.float32, ["batch", config.vocab_size])
        for layer in range(config.layers):
            for what in ("key", "value"):
                graph.output(f"present.{layer}.{what}", np.float32, self._buffer())

    def _buffer(self) -> list[str | int]:
        return ["batch", self._config.key_value_heads, "room", self._head]

    def _places(self, tokens: str, lengths: str) -> _Places:
        graph = self._graph
        new = graph.node("Shape", tokens, start=1)
        new32 = graph.node("Cast", new, to=6)
        nothing, one = graph.number(0, np.int32), graph.number(1, np.int32)
        start = graph.node("Max", graph.node("Sub", lengths, new32), nothing)
        columns = graph.node(
            "Range", graph.constant("int64.first", np.array(0)), graph.node("Squeeze", new),
            graph.constant("int64.step", np.array(1)),
        )  # fmt: skip
        first = graph.node("Unsqueeze", graph.node("Cast", start, to=7), graph.number(1))
        last = graph.node("Sub", graph.node("Min", lengths, new32), one)
        return _Places(
            positions=graph.node("Add", first, columns),
            before=graph.node("Sub", lengths, one),
            longest=graph.node("Max", graph.node("ReduceMax", lengths), new32),
            last=graph.node("Unsqueeze", graph.node("Cast", last, to=7), graph.number(1)),
        )

    def _embedding(self, tokens: str, positions: str) -> str:
        graph, config = self._graph, self._config
        held = self._params["embedding"]
        table = table_of(held["tokens"], config.vocab_size)
        self.kept["embedding.tokens"] = keeps(table, self._precision.of_tables)
        x = rows(graph, tokens, "embedding.tokens", table, self._precision)
        if config.embedding_width:
            kernel = matrix_of(held["projection"]["kernel"])
            x = self._product(x, "embedding.projection", kernel, None)
        if config.learned_positions:
            places = graph.constant(
                "embedding.positions", _array(held["positions"])[config.position_offset :]
            )
            x = graph.node("Add", x, graph.node("Gather", places, positions))
        return x

    def _scores(self, hidden: str) -> str:
        tied, held = self._config.tied, self._params
        table = table_of(held["embedding"]["tokens"] if tied else held["head"], self._config.vocab_size)
        name = "embedding.tokens" if tied else "head"
        self.kept[name] = keeps(table, self._precision.of_tables)
        return scores(self._graph, hidden, name, table, self._precision)

    def _block(self, x: str, addend: str, layer: int, places: _Places) -> tuple[str, str]:
        """The residual stream after a block, and what is still to be added to it ("": nothing)."""
        residual = self._config.residual
        if residual == "post_norm":
            x, _ = self._norm("attention_norm", layer, x, self._attention(x, layer, places))
            x, _ = self._norm("mlp_norm", layer, x, self._mlp(x, layer))
            return x, ""
        normal, x = self._norm("attention_norm", layer, x, addend)
        attention = self._attention(normal, layer, places)
        if residual == "parallel":
            normal, x = self._norm("mlp_norm", layer, x)
            return x, self._graph.node("Add", attention, self._mlp(normal, layer))
        normal, x = self._norm("mlp_norm", layer, x, attention)
        return x, self._mlp(normal, layer)

    def _final(self, x: str, addend: str) -> str:
        if self._config.final_norm:
            return self._norm("final_norm", None, x, addend)[0]
        return self._graph.node("Add", x, addend) if addend else x

    def _norm(self, name: str, layer: int | None, x: str, addend: str = "") -> tuple[str, str]:
        """The norm of `x + addend`, and that sum."""
        graph, config = self._graph, self._config
        held = self._params[name] if layer is None else self._params["layers"][name]
        path = name if layer is None else f"layers.{layer}.{name}"
        scale, *bias = (
            graph.constant(f"{path}.{part}", _array(held[part], layer))
            for part in (("scale",) if config.norm == "rms" else ("scale", "bias"))
        )
        epsilon = config.norm_epsilon
        if not addend:
            operator = "RMSNormalization" if config.norm == "rms" else "LayerNormalization"
            return graph.node(operator, x, scale, *bias, axis=-1, epsilon=epsilon), x
        operator = "SkipSimplifiedLayerNormalization" if config.norm == "rms" else "SkipLayerNormalization"
        names = [f"{path}.normal", "", "", f"{path}.sum"]
        graph.nodes(operator, x, addend, scale, *bias, outputs=names, domain=CONTRIB, epsilon=epsilon)
        return names[0], names[3]

    def _attention(self, x: str, layer: int, places: _Places) -> str:
        graph, config = self._graph, self._config
        held, path = self._params["layers"]["attention"], f"layers.{layer}.attention"
        names = ("query", "key", "value")
        widths = config.head_width, self._head
        kernel = joined([matrix_of(held[name]["kernel"], layer).padded(*widths) for name in names])
        bias = None
        if config.attention_bias:
            biases = [Matrix(_array(held[name]["bias"], layer)[None]).padded(*widths) for name in names]
            bias = joined(biases).values[0]
        packed = self._product(x, f"{path}.query_key_value", kernel, bias)
        queries = [packed, "", ""] if config.rotary is None else self._rotated(packed, places)
        past = [f"past_key_values.{layer}.{what}" for what in ("key", "value")]
        for name in past:
            graph.input(name, np.float32, self._buffer())
        window = config.layer_windows[layer]
        mixed, *_ = graph.nodes(
            "GroupQueryAttention", *queries, *past, places.before, places.longest,
            outputs=[f"{path}.mixed", *(f"present.{layer}.{what}" for what in ("key", "value"))],
            domain=CONTRIB, num_heads=config.heads, kv_num_heads=config.key_value_heads,
            scale=config.attention_scales[layer], local_window_size=window or -1,
        )  # fmt: skip
        out = matrix_of(held["out"]["kernel"], layer).with_padded_inputs(*widths)
        offset = _array(held["out"]["bias"], layer) if config.attention_out_bias else None
        return self._product(mixed, f"{path}.out", out, offset)

    def _product(self, x: str, name: str, kernel: Matrix, bias: np.ndarray | None) -> str:
        self.kept[name] = keeps(kernel, self._precision)
        return product(self._graph, x, name, kernel, bias, self._precision)

    def _rotated(self, packed: str, places: _Places) -> list[str]:
        """Queries and keys, turned, and values."""
        graph, config, rotary = self._graph, self._config, self._config.rotary
        assert rotary is not None
        made = angles(jnp.arange(config.positions)[None], rotary, config.head_width)
        tables = [
            graph.constant(f"rotary.{name}", np.asarray(values[0], np.float32))
            for name, values in (("cosine", made.cosine), ("sine", made.sine))
        ]
        heads = [config.heads, config.key_value_heads, config.key_value_heads]
        sizes = graph.constant("heads", np.array([count * self._head for count in heads]))
        *turned, value = graph.nodes("Split", packed, sizes, outputs=3, axis=-1)
        return [
            graph.node(
                "RotaryEmbedding", part, places.positions, *tables, domain=CONTRIB, num_heads=count,
                rotary_embedding_dim=2 * made.cosine.shape[-1],
            )
            for part, count in zip(turned, heads, strict=False)
        ] + [value]  # fmt: skip

    def _mlp(self, x: str, layer: int) -> str:
        graph, config = self._graph, self._config
        held, activation = self._params["layers"]["mlp"], OPERATORS[config.activation]

        def projected(name: str, x: str) -> str:
            bias = _array(held[name]["bias"], layer) if config.mlp_bias else None
            return self._product(
                x, f"layers.{layer}.mlp.{name}", matrix_of(held[name]["kernel"], layer), bias
            )

        if config.gated:
            gate = activation(graph, projected("gate", x))
            return projected("down", graph.node("Mul", gate, projected("up", x)))
        return projected("down", activation(graph, projected("up", x)))


def _array(leaf: Array | np.ndarray, layer: int | None = None) -> np.ndarray:
    """A parameter, or its part of a layer, as float32 on the host."""
    values = np.asarray(leaf)
    return np.asarray(values if layer is None else values[layer], np.float32)
