"""Bytes of weights that a step reads are those that lie in memory, to the byte."""

import onnx
import pytest

from ragjax.benchmark.weights import weight_bytes, weight_type
from ragjax.config import Quantize
from ragjax.interchange.onnx import export_onnx, load_onnx
from ragjax.quantizing import quantize

WEIGHTS = (".weight", ".codes", ".scales", ".bias", ".scale", "embedding.positions")


def in_graph(folder, config):
    """Bytes of a step by the constants that the file itself holds."""
    shared = own = 0
    for each in onnx.load(folder / "model.onnx").graph.initializer:
        if not each.name.endswith(WEIGHTS):
            continue
        size = onnx.numpy_helper.to_array(each, str(folder)).nbytes
        if each.name == "embedding.positions" or (
            each.name.startswith("embedding.tokens.") and not config.tied
        ):
            own += size // each.dims[0]
        else:
            shared += size
    return shared, own


def test_every_family_reads_its_matrices_and_a_row_of_what_it_looks_up(kind, of_kind, random_model):
    config = of_kind(kind)
    model = random_model(config)
    params = model.params
    found = weight_bytes(model)
    tables = dict(params["embedding"])
    positions, tokens = tables.get("positions"), tables["tokens"]
    all_of_it = sum(leaf.nbytes for leaf in _leaves(params))
    looked_up = [each for each in (positions, None if config.tied else tokens) if each is not None]
    assert found.shared == all_of_it - sum(each.nbytes for each in looked_up)
    assert found.own == sum(each.shape[1] * 4 for each in looked_up)
    assert found.of_step(8) == found.shared + 8 * found.own


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def test_small_integers_count_as_what_they_take(tiny_model):
    width, mlp, layers, rows = 32, 128, 3, 384
    small = quantize(tiny_model, Quantize(scheme="int4", group=32, tables="int8", method="rtn")).model
    weights = layers * (4 * width * width + 2 * width * mlp)
    floats = layers * (4 * width + 4 * width + mlp + width) + 2 * width
    table = rows * width + rows * 2
    # Half a byte a weight, and a scale of two bytes for 32 of them.
    expected = weights // 2 + weights // 32 * 2 + floats * 4 + table
    assert weight_bytes(small) == (expected, width * 4)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("gpt2", "int4"), ("opt-350m", "int8_128"), ("qwen2", "int8"), ("llama", "float32"), ("llama", "int8")],
)
def test_a_graph_reads_what_its_file_holds(kind, dtype, of_kind, random_model, tmp_path):
    config = of_kind(kind)
    folder = export_onnx(random_model(config), tmp_path / "m", dtype=dtype)
    opened = load_onnx(folder, threads=1)
    assert weight_bytes(opened) == in_graph(folder, config)
    assert weight_type(opened) == dtype


def test_models_say_in_what_type_their_weights_lie(tiny_model):
    assert weight_type(tiny_model) == "float32"
    for scheme in ("int8", "int4", "int8_activations"):
        assert weight_type(quantize(tiny_model, Quantize(scheme=scheme)).model) == scheme
    some = Quantize(scheme="int8", quantizable=("layers/mlp/*/kernel",))
    assert weight_type(quantize(tiny_model, some).model) == "float32 and int8"
