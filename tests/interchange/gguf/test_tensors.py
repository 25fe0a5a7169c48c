import gguf
import ml_dtypes
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.interchange.gguf.head import read_head
from ragjax.interchange.gguf.tensors import GgufTensors

WRITTEN = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types the package can make."""
RANDOM = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Types it can only read, any bytes of which mean something."""


def write(path, tensors):
    """A file of raw tensors: by name, the type, and the bytes or values."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return GgufTensors(path, read_head(path))


@pytest.fixture
def values():
    # More than are dequantized at once, and no whole number of that.
    return np.random.default_rng(0).standard_normal((4200, 512)).astype(np.float32)


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_quantized_tensor_reads_as_the_package_dequantizes_it(tmp_path, values, kind):
    code = gguf.GGMLQuantizationType[kind]
    stored = gguf.quantize(values, code)
    tensors = write(tmp_path / "m.gguf", {"t": (kind, stored)})
    assert (tensors.shapes, tensors.dtypes, tensors.kinds) == ({"t": (4200, 512)}, {"t": "F32"}, {"t": kind})
    found = tensors.read("t")
    np.testing.assert_array_equal(found, gguf.dequantize(stored, code))
    # Above all a real approximation of what was stored.
    assert np.abs(found - values).max() < 0.5


@pytest.mark.parametrize("kind", RANDOM)
def test_a_type_that_only_llama_cpp_writes_reads_as_the_package_dequantizes_it(tmp_path, kind):
    code = gguf.GGMLQuantizationType[kind]
    per_block, size = gguf.GGML_QUANT_SIZES[code]
    stored = np.random.default_rng(1).integers(0, 256, (6, 2 * size), np.uint8)
    with np.errstate(invalid="ignore"):
        found = write(tmp_path / "m.gguf", {"t": (kind, stored)}).read("t")
        expected = gguf.dequantize(stored, code)
    assert found.shape == (6, 2 * per_block)
    np.testing.assert_array_equal(found, expected)


def test_plain_values_read_as_they_are_stored(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    half, brain = values.astype(np.float16), values.astype(ml_dtypes.bfloat16)
    tensors = write(
        tmp_path / "m.gguf",
        {"a": ("F32", values), "b": ("F16", half), "c": ("BF16", brain.view(np.uint8))},
    )
    assert tensors.dtypes == {"a": "F32", "b": "F16", "c": "BF16"}
    for name, expected in {"a": values, "b": half, "c": brain}.items():
        assert tensors.read(name).dtype == expected.dtype
        np.testing.assert_array_equal(tensors.read(name), expected)


def test_types_that_cannot_be_read_are_all_named(tmp_path):
    ids = np.arange(4, dtype=np.int32)
    with pytest.raises(InputError, match=r"types that cannot be read(.|\n)*a: I32(.|\n)*b: Q8_K"):
        write(
            tmp_path / "m.gguf",
            {"a": ("I32", ids), "b": ("Q8_K", np.zeros((1, 292), np.uint8)), "c": ("F32", np.ones(3, "f4"))},
        )


def test_a_file_without_its_last_bytes_names_the_tensors_that_are_cut(tmp_path):
    write(tmp_path / "m.gguf", {"a": ("F32", np.ones(64, "f4")), "b": ("F32", np.ones(64, "f4"))})
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"not a whole GGUF file(.|\n)*b: ends beyond the end") as error:
        GgufTensors(tmp_path / "m.gguf", read_head(tmp_path / "m.gguf"))
    assert "a:" not in str(error.value)
