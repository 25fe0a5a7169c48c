import struct

import gguf
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.interchange.gguf import read_gguf, write_gguf
from ragjax.interchange.gguf.head import read_head


@pytest.fixture(scope="module")
def whole(tmp_path_factory, word_model):
    return write_gguf(word_model, tmp_path_factory.mktemp("gguf") / "whole.gguf", dtype="q8_0").path


def test_every_type_of_value_reads_as_the_format_defines_it(tmp_path):
    values = {
        "uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 4_000_000_000, "int32": -70000,
        "float32": 0.5, "uint64": 2**63, "int64": -(2**40), "float64": 1e-300, "bool": True, "string": "né Ġ",
    }  # fmt: skip
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "none")
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.strings", ["a", "", "é"])
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_array("x.reals", [0.5, -1.5])
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    head = read_head(tmp_path / "m.gguf")
    assert head.metadata == {
        "general.architecture": "none", **{f"x.{kind}": value for kind, value in values.items()},
        "x.strings": ["a", "", "é"], "x.numbers": [1, -2, 3], "x.reals": [0.5, -1.5],
    }  # fmt: skip
    place = head.tensors["t"]
    stored = np.fromfile(tmp_path / "m.gguf", np.uint8)[place.begin : place.begin + 24].view(np.float32)
    assert place.shape == (2, 3)
    assert stored.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_the_package_reads_is_what_is_read_here(whole):
    theirs, ours = gguf.GGUFReader(whole), read_head(whole)
    found = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in found.items()
    }
    assert {name: (place.shape, place.begin) for name, place in ours.tensors.items()} == {
        tensor.name: (tuple(reversed(tensor.shape.tolist())), tensor.data_offset) for tensor in theirs.tensors
    }


def test_a_number_of_float32_is_the_shortest_that_names_it(whole):
    assert read_head(whole).metadata["gpt2.attention.layer_norm_epsilon"] == 1e-5


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "no GGUF file.*must begin with b'GGUF'"),
        (b"GGML\3\0\0\0", "no GGUF file.*found b'GGML'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"GGUF\0\0\0\3" + bytes(16), "big-endian.*gguf-convert-endian"),
        (b"GGUF\1\0\0\0" + bytes(16), "version 2 or 3 was expected, found 1"),
        (b"GGUF\3\0\0\0" + struct.pack("<QQ", 2**60, 0), "not a whole GGUF file"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, start, message):
    (tmp_path / "m.gguf").write_bytes(start)
    with pytest.raises(InputError, match=message):
        read_head(tmp_path / "m.gguf")


def test_one_part_of_several_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16("split.count", 3)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        write()
    writer.close()
    with pytest.raises(InputError, match=r"one of 3 files.*llama-gguf-split --merge"):
        read_head(tmp_path / "m.gguf")


def test_a_file_cut_off_anywhere_is_refused(tmp_path, whole):
    data = whole.read_bytes()
    for size in np.linspace(0, len(data) - 33, 40).astype(int):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(InputError, match="GGUF file"):
            read_gguf(tmp_path / "cut.gguf")


def test_a_damaged_head_raises_nothing_but_the_error_for_people(tmp_path, whole):
    data = whole.read_bytes()
    end = min(place.begin for place in read_head(whole).tensors.values())
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        bad = bytearray(data)
        bad[random.integers(4, end)] ^= 1 << random.integers(8)
        (tmp_path / "bad.gguf").write_bytes(bad)
        try:
            read_gguf(tmp_path / "bad.gguf")
        except InputError:
            refused += 1
    assert 10 < refused < 150


def test_a_list_longer_than_the_file_takes_no_memory(tmp_path):
    entry = struct.pack("<Q", 1) + b"x" + struct.pack("<IIQ", 9, 8, 2**50)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with pytest.raises(InputError, match="not a whole GGUF file"):
        read_head(tmp_path / "m.gguf")
