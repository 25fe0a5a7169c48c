"""Quantized weights against the formula, and against what they should do to a model."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ragjax.generation.onnx.network import Network
from ragjax.interchange.onnx.weights import PRECISIONS, quantize
from ragjax.model import Model
from ragjax.models.decoder import init_params


def dequantized(matrix, bits, block):
    """What a matrix [outputs, inputs] is after quantization, in float64, unpacked code by code."""
    codes, scales = quantize(matrix, bits, block)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], block)
    values = (codes.astype(np.float64) - 2 ** (bits - 1)) * scales[..., None]
    return values.reshape(len(matrix), -1)[:, : matrix.shape[1]]


@pytest.mark.parametrize(("bits", "inputs"), [(8, 64), (8, 40), (4, 64), (4, 33)])
def test_each_value_is_off_by_no_more_than_its_step(bits, inputs):
    matrix = np.random.default_rng(0).standard_normal((7, inputs)).astype(np.float32)
    matrix[2], matrix[3, ::2] = 0, 0
    back = dequantized(matrix, bits, 32)
    for start in range(0, inputs, 32):
        part = np.s_[:, start : start + 32]
        largest = np.abs(matrix[part]).max(1, keepdims=True)
        step = largest / 2 ** (bits - 1)
        error = np.abs(back[part] - matrix[part])
        # The code that would be largest of all is not there: only values near it lose a whole step.
        near = np.abs(matrix[part]) > largest - step / 2
        assert (error <= np.where(near, step, step / 2) * (1 + 1e-5)).all()
        exact = np.abs(matrix[part]).argmax(1)
        np.testing.assert_allclose(*(each[part][np.arange(7), exact] for each in (back, matrix)), rtol=1e-6)
    assert not back[matrix == 0].any()


@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.05), ("int8_128", 0.05), ("int4", 0.4)])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_logits_are_near_and_nearer_to_those_of_the_rounded_weights(kind, dtype, bound, of_kind, opened):
    config = of_kind(kind, width=64, mlp_width=96, heads=4, initializer_range=0.1)
    model = Model(config, init_params(config, 0))
    _, there = opened(model, dtype)
    tokens = np.random.default_rng(0).integers(0, 50, (12, 9))
    found = Network(there, batch=12, room=9).read(tokens.tolist())

    def of_blocks(matrix, precision=PRECISIONS[dtype]):
        block = precision.block_of(matrix.shape[1])
        return dequantized(matrix, precision.bits, block).astype(np.float32)

    def of_kernel(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        leaf = np.asarray(leaf)
        return of_blocks(leaf.T).T if leaf.ndim == 2 else np.stack([of_blocks(each.T).T for each in leaf])

    params = jax.tree.map_with_path(of_kernel, model.params)
    for holder, name in ((params["embedding"], "tokens"), (params, "head")):
        if name in holder:
            holder[name] = of_blocks(np.asarray(holder[name]), PRECISIONS[dtype].of_tables)
    expected, of_rounded = (
        np.asarray(Model(model.config, each)(tokens))[:, -1] for each in (model.params, params)
    )
    scale = np.abs(expected).max()
    assert 0 < np.abs(found - expected).max() < bound * scale
    assert np.abs(found - of_rounded).max() < 0.03 * scale


BYTES = {
    "float32": (4, 4, 4),
    "int8": (9 / 8, 9 / 8, 9 / 8),
    "int8_128": (17 / 16, 33 / 32, 17 / 16),
    "int4": (5 / 8, 5 / 8, 9 / 8),
}
"""A weight of a matrix of 64 inputs, of one of 256, and of a table of width 64, with its share of a scale."""


@pytest.mark.parametrize("tied", [True, False])
def test_files_have_the_bytes_of_their_types(tied, tiny_config, random_model, opened):
    config = replace(tiny_config, width=64, mlp_width=256, vocab_size=3000, tied=tied)
    model = random_model(config)
    tables = config.vocab_size * config.width * (1 if tied else 2)
    narrow, wide = (config.layers * count * config.width**2 for count in (8, 4))
    rest = 4 * config.positions * config.width
    for dtype, (of_narrow, of_wide, of_tables) in BYTES.items():
        folder, _ = opened(model, dtype)
        expected = narrow * of_narrow + wide * of_wide + tables * of_tables + rest
        # Larger constants begin at whole pages, and the nodes have names.
        assert (
            expected <= sum(file.stat().st_size for file in folder.glob("model.onnx*")) < expected + 150_000
        )
