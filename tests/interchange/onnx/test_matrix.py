"""Integers of a quantized model in a graph: taken over as they are, or rounded again and said so."""

from dataclasses import replace

import numpy as np
import pytest

from ragjax.config import Quantize
from ragjax.data.tokenizer import train_tokenizer
from ragjax.generation.onnx.network import Network
from ragjax.interchange.formats import export
from ragjax.interchange.onnx import export_onnx, load_onnx, write_onnx
from ragjax.interchange.onnx.matrix import joined, matrix_of, table_of
from ragjax.interchange.onnx.weights import PRECISIONS, keeps, taken_over
from ragjax.quantization.grid import grid, to_codes
from ragjax.quantization.quantized import encoded, quantized
from ragjax.quantization.scheme import SCHEMES
from ragjax.quantization.table import quantized_table
from ragjax.quantizing import quantize


def kernel(inputs=64, outputs=24, seed=0):
    return np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)


def read_back(blocks, bits):
    """The floats [inputs, outputs] of blocks, in float64, unpacked code by code."""
    codes = blocks.codes
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], -1)
    values = (codes.astype(np.float64) - 2 ** (bits - 1)) * blocks.scales[..., None]
    return values.reshape(len(values), -1).T


@pytest.mark.parametrize(("scheme", "group"), [("int4", 32), ("int4", 64), ("int8", 0), ("int8", 32)])
@pytest.mark.parametrize("dtype", ["int8", "int8_128", "int4"])
def test_every_integer_comes_back_where_the_blocks_can_say_it(scheme, group, dtype):
    scheme, precision = replace(SCHEMES[scheme], group=group), PRECISIONS[dtype]
    weights = kernel(128)
    weights[:, 3], weights[::2, 5] = 0, 0
    # A grid that rounding to the nearest would not choose, as GPTQ has.
    own = grid(weights * 0.9, scheme)
    small = encoded(to_codes(weights, own, scheme), own, scheme)
    matrix, block = matrix_of(small), precision.block_of(128)
    fits = scheme.bits <= precision.bits and (group or 128) % block == 0
    assert keeps(matrix, precision) == fits
    if fits:
        found = read_back(taken_over(matrix, precision.bits, block), precision.bits)
        np.testing.assert_array_equal(found, np.asarray(small.whole(), np.float64))


def test_no_grid_is_seen_where_a_model_has_none_that_is_symmetric():
    skewed = quantized(kernel() + 1, replace(SCHEMES["int4"], symmetric=False))
    for matrix in (matrix_of(skewed), matrix_of(kernel())):
        assert not keeps(matrix, PRECISIONS["int4"])
    np.testing.assert_array_equal(matrix_of(skewed).whole, skewed.whole())


def test_a_table_keeps_its_rows_scales():
    table = quantized_table(kernel(256, 64))
    matrix = table_of(table, rows=200)
    assert keeps(matrix, PRECISIONS["int4"].of_tables)
    found = read_back(taken_over(matrix, 8, 32), 8).T
    np.testing.assert_array_equal(found, np.asarray(table.whole(), np.float64)[:200])


def test_matrices_of_the_same_inputs_are_one_where_their_groups_and_divisors_are_alike():
    scheme = SCHEMES["int4"]
    divisor, other = (np.random.default_rng(i).uniform(0.5, 2, 64).astype(np.float32) for i in (1, 2))

    def divided(by, seed, scheme=scheme):
        weights = kernel(seed=seed)
        own = grid(weights, scheme)
        return matrix_of(encoded(to_codes(weights, own, scheme), own, scheme, by))

    alike = joined([divided(divisor, 0), divided(divisor, 1)])
    assert keeps(alike, PRECISIONS["int4"])
    parts = [divided(divisor, 0), divided(other, 1)]
    for unlike in (parts, [divided(None, 0), divided(divisor, 1)], [divided(None, 0), matrix_of(kernel())]):
        one = joined(unlike)
        assert not keeps(one, PRECISIONS["int4"])
        np.testing.assert_array_equal(one.whole, np.concatenate([part.whole for part in unlike], -1))
    coarse = divided(None, 1, replace(scheme, group=64))
    assert not keeps(joined([divided(None, 0), coarse]), PRECISIONS["int4"])


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_model_by_awq_and_gptq_runs_on_its_own_integers(kind, of_kind, random_model, tmp_path):
    text = "some text to learn from, and other text that is not learned from. " * 8
    tokenizer = train_tokenizer([text], vocab_size=300)
    config = of_kind(kind, width=64, mlp_width=96, heads=4, vocab_size=300, initializer_range=0.1)
    model = replace(random_model(config), tokenizer=tokenizer)
    tokens = np.random.default_rng(0).integers(0, 300, (4, 9))
    (tmp_path / "text.txt").write_text(text)
    for method in ("awq", "gptq"):
        asked = Quantize(
            scheme="int4", method=method, tables="int8", calibration=f"text:{tmp_path}/text.txt",
            samples=4, sequence_length=16,
        )  # fmt: skip
        small = quantize(model, asked).model
        written = write_onnx(small, tmp_path / method, dtype="int4")
        assert written.kept == written.matrices
        found = Network(load_onnx(written.path, threads=1), batch=4, room=9).read(tokens.tolist())
        expected = np.asarray(small(tokens))[:, -1]
        # Only what the weights are multiplied with is rounded, to 8 bits.
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_what_is_kept_is_told(tiny_byte_model, tmp_path):
    small = quantize(tiny_byte_model, Quantize(scheme="int8", tables="int8")).model
    told = export(small, tmp_path / "eight", format="onnx", dtype="int8")
    assert told.contents.endswith("of 9 matrices 9 with the model's own integers and scales")
    assert load_onnx(tmp_path / "eight").history[-1]["integers_kept"] == 9
    told = export(small, tmp_path / "four", format="onnx", dtype="int4")
    assert told.contents.endswith("of 9 matrices 1 with the model's own integers and scales")


def test_in_float32_the_floats_are_written(tiny_byte_model, tmp_path):
    small = quantize(tiny_byte_model, Quantize(tables="int8")).model
    folders = export_onnx(small, tmp_path / "small"), export_onnx(small.in_floats(), tmp_path / "floats")
    ours, floats = ((folder / "model.onnx.data").read_bytes() for folder in folders)
    assert ours == floats
    assert [each["did"] for each in load_onnx(folders[0]).history[-2:]] == ["dequantize", "export"]
