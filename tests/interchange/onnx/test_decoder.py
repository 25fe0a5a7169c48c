"""The graph computes what the model does, fed as a caller of onnxruntime would feed it."""

import jax
import numpy as np
import onnxruntime
import pytest

from ragjax.interchange.onnx.activations import OPERATORS
from ragjax.interchange.onnx.graph import Graph
from ragjax.models.activations import ACTIVATIONS
from ragjax.models.decoder_config import Rotary, RotaryScaling

LENGTHS = np.array([5, 1, 7, 3], np.int32)
"""Of the prompts; each text then grows to 7 more tokens."""
LLAMA3 = Rotary(500.0, scaling=RotaryScaling("llama3", 8.0, original_positions=16))
LINEAR = Rotary(100.0, scaling=RotaryScaling("linear", 4.0))
BIASES = {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}
ODD = {
    "one_odd_head_of_keys": {"kv_heads": 1, "head_size": 10, "rotary": LLAMA3, "tied": True},
    "biases": {"rotary": LINEAR, "mlp_width": 33, **BIASES},
}
"""Llamas."""


def texts(config, size=14):
    return np.random.default_rng(1).integers(0, config.vocab_size, (len(LENGTHS), size), np.int32)


def logits_along(session, tokens, room):
    """Logits after each prompt and after each of 7 more tokens, keys and values kept in shared buffers."""
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    buffers = {
        given.name.partition(".")[2]: value(
            np.zeros((len(tokens), given.shape[1], room, given.shape[3]), "f4")
        )
        for given in session.get_inputs()
        if given.name.startswith("past")
    }

    def run(tokens, lengths):
        binding = session.io_binding()
        binding.bind_cpu_input("tokens", np.ascontiguousarray(tokens))
        binding.bind_cpu_input("lengths", lengths)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()

    # What stands behind a shorter prompt does not matter, so that the text's own tokens serve.
    found, rows = [run(tokens[:, : LENGTHS.max()], LENGTHS)], np.arange(len(tokens))
    for more in range(1, 8):
        found.append(run(tokens[rows, LENGTHS + more - 1][:, None], (LENGTHS + more).astype(np.int32)))
    return np.stack(found)


def logits_of(model, tokens):
    """The same, each read with its whole text."""
    whole = np.asarray(model(tokens))
    return np.stack([whole[np.arange(len(tokens)), LENGTHS + more - 1] for more in range(8)])


def test_every_family_has_the_logits_of_the_model(kind, of_kind, random_model, opened):
    model = random_model(of_kind(kind, positions=24))
    tokens = texts(model.config)
    _, there = opened(model)
    expected = logits_of(model, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_along(there.session, tokens, room=16), expected, atol=1e-4)


@pytest.mark.parametrize("name", ODD)
def test_odd_sizes_have_the_logits_of_the_model(name, of_kind, random_model, opened):
    model = random_model(of_kind("llama", positions=24, **ODD[name]))
    tokens = texts(model.config)
    _, there = opened(model)
    found = logits_along(there.session, tokens, room=24)
    np.testing.assert_allclose(found, logits_of(model, tokens), atol=1e-4)


@pytest.mark.usefixtures("as_for_users")
def test_every_activation_is_that_of_the_models(tmp_path):
    assert OPERATORS.keys() == ACTIVATIONS.keys()
    x = np.linspace(-20, 20, 401, dtype=np.float32)
    graph = Graph(tmp_path / "data")
    given = graph.input("x", np.float32, ["n"])
    for name, operator in OPERATORS.items():
        graph.node("Identity", operator(graph, given), name=name)
        graph.output(name, np.float32, ["n"])
    graph.save(tmp_path / "model.onnx", name="activations", metadata={})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(list(OPERATORS), {"x": x})
    for name, values in zip(OPERATORS, found, strict=True):
        np.testing.assert_allclose(values, jax.jit(ACTIVATIONS[name])(x), atol=2e-6, err_msg=name)
