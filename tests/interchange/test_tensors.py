import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ragjax.errors import InputError
from ragjax.interchange.tensors import INDEX, SINGLE, open_tensors, write_tensors

VALUES = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "b": np.array([1e-3, -0.0, 65504.0], np.float32),
    "c": np.full((4, 2), -2.5, np.float32),
}


def write(folder, values=VALUES, **options):
    write_tensors(folder, {n: v.shape for n, v in values.items()}, values.__getitem__, **options)


def read_all(folder):
    tensors = open_tensors(folder)
    return {name: tensors.read(name) for name in tensors.shapes}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [1, 30, 10**9])
def test_what_is_written_is_read_in_every_type_and_number_of_files(tmp_path, dtype, shard_bytes):
    write(tmp_path, dtype=dtype, shard_bytes=shard_bytes)
    found = read_all(tmp_path)
    assert list(found) == list(VALUES)
    for name, values in VALUES.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], values.astype(found[name].dtype))
        assert (np.signbit(found[name]) == np.signbit(values)).all()


def test_shards_are_named_and_sized_as_hugging_face_does(tmp_path):
    write(tmp_path, shard_bytes=36)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_parameters": 17, "total_size": 68}
    assert index["weight_map"]["b"] == "model-00001-of-00002.safetensors"
    assert list(load_file(tmp_path / "model-00002-of-00002.safetensors")) == ["c"]


def test_others_may_read_the_files_as_they_may_read_any(tmp_path):
    write(tmp_path)
    (tmp_path / "any").touch()
    assert (tmp_path / SINGLE).stat().st_mode == (tmp_path / "any").stat().st_mode


def test_torch_reads_the_files(tmp_path):
    import torch
    from safetensors.torch import load_file

    write(tmp_path, dtype="bfloat16")
    found = load_file(tmp_path / SINGLE)
    for name, values in VALUES.items():
        assert torch.equal(found[name], torch.tensor(values).bfloat16())


def test_values_too_large_for_the_type_are_named_and_not_written(tmp_path):
    with pytest.raises(InputError, match=r"(?s)float16.*a\n.*b"):
        write(
            tmp_path,
            {"a": np.float32([1e6]), "ok": np.float32([1]), "b": np.float32([np.nan])},
            dtype="float16",
        )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_is_refused(tmp_path):
    with pytest.raises(InputError, match="float32, float16, bfloat16, found 'int8'"):
        write(tmp_path, dtype="int8")


def cut(data):
    return data[: len(data) - 5]


def longer(data):
    return data + b"\0"


def flip_header(data):
    return data[:9] + b"\xff" + data[10:]


def huge_header(data):
    return struct.pack("<Q", 1 << 60) + data[8:]


def wrong_offsets(data):
    return data.replace(b"[0,", b"[1,", 1)


def empty(data):
    return b""


@pytest.mark.parametrize("damage", [cut, longer, flip_header, huge_header, wrong_offsets, empty])
@pytest.mark.parametrize("shard_bytes", [1, 10**9])
def test_a_damaged_file_is_named(tmp_path, damage, shard_bytes):
    write(tmp_path, shard_bytes=shard_bytes)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=rf"{file.name} is not a whole safetensors file"):
        open_tensors(tmp_path)


def test_a_git_lfs_pointer_says_how_to_fetch_the_file(tmp_path):
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="git lfs pull"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "a\\x.safetensors", "..", "",
        "model.bin", 3, ".safetensors", "x.safetensors\n",
    ],
)  # fmt: skip
def test_an_index_may_not_lead_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder, shard_bytes=36)
    for outside in ("x.safetensors", "model/sub.safetensors"):
        save_file({"c": VALUES["c"]}, tmp_path / outside)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["c"] = name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="is no file name"):
        open_tensors(folder)


def test_missing_shards_and_misplaced_tensors_are_named(tmp_path):
    write(tmp_path, shard_bytes=1)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["c"] = index["weight_map"]["a"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"c: not in model-00001"):
        open_tensors(tmp_path)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"(?s)00001-of-00003.safetensors is missing.*00002"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": []}}']
)
def test_a_damaged_index_is_refused(tmp_path, index):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(InputError, match=INDEX):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("pytorch_model.bin", "M.from_pretrained("),
        ("pytorch_model-00001-of-00002.bin", "M.from_pretrained("),
        ("flax_model.msgpack", "from_flax=True"),
        ("tf_model.h5", "from_tf=True"),
    ],
)
def test_other_formats_are_refused_with_the_way_to_convert_them(tmp_path, name, way):
    (tmp_path / name).write_bytes(b"\x80")
    with pytest.raises(InputError, match="not read") as caught:
        open_tensors(tmp_path)
    assert name in str(caught.value)
    assert way in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_way_to_convert_works(tmp_path, torch_gpt2):
    import shlex
    import subprocess
    import sys

    import torch

    theirs = torch_gpt2()
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        open_tensors(tmp_path)
    command = shlex.split(str(caught.value).split("installed: ")[1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert read_all(tmp_path)


def test_no_weights_at_all_lists_what_is_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"looked for model.safetensors.*found config.json"):
        open_tensors(tmp_path)
