"""The nonlinearities of `ragjax.models.activations` as operators of a graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ragjax.interchange.onnx.graph import CONTRIB, Graph


def _gelu(graph: Graph, x: str) -> str:
    return graph.node("Gelu", x)


def _gelu_tanh(graph: Graph, x: str) -> str:
    return graph.node("Gelu", x, approximate="tanh")


def _gelu_10(graph: Graph, x: str) -> str:
    return _clipped(graph, _gelu(graph, x), -10, 10)


def _clipped(graph: Graph, x: str, low: float, high: float) -> str:
    low_name, high_name = (
        graph.constant(f"float.{value}", np.array(value, np.float32)) for value in (low, high)
    )
    return graph.node("Clip", x, low_name, high_name)


def _times_sigmoid(alpha: float) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.node("QuickGelu", x, domain=CONTRIB, alpha=alpha)


def _relu2(graph: Graph, x: str) -> str:
    positive = graph.node("Relu", x)
    return graph.node("Mul", positive, positive)


def _plain(operator: str) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.node(operator, x)


OPERATORS: dict[str, Callable[[Graph, str], str]] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_10": _gelu_10,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": _times_sigmoid(1.702),
    "relu": _plain("Relu"),
    "relu2": _relu2,
    "relu6": lambda graph, x: _clipped(graph, x, 0, 6),
    "leaky_relu": _plain("LeakyRelu"),
    "silu": _times_sigmoid(1.0),
    "swish": _times_sigmoid(1.0),
    "mish": _plain("Mish"),
    "hardswish": _plain("HardSwish"),
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "linear": lambda _, x: x,
}
"""By the names of `ragjax.models.activations.ACTIVATIONS`."""
