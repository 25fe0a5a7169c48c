"""The folder: what is in it, and that it runs where ragjax is not."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from ragjax.config import Quantize
from ragjax.errors import InputError
from ragjax.generation import generate_tokens
from ragjax.generation.onnx.network import Network
from ragjax.interchange import load
from ragjax.interchange.formats import export
from ragjax.interchange.onnx import export_onnx, in_onnxruntime, is_onnx, load_onnx
from ragjax.model import Model
from ragjax.quantizing import quantize


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_byte_model):
    model = replace(tiny_byte_model, history=({"did": "prune"},))
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "int8", dtype="int8")


def test_the_graph_is_sound_and_says_what_it_is(folder):
    onnx.checker.check_model(folder / "model.onnx", full_check=False)
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert graph.ir_version == 11
    assert {each.domain: each.version for each in graph.opset_import} == {"": 23, "com.microsoft": 1}
    told = {each.key: each.value for each in graph.metadata_props}
    expected = {
        "format": "onnx", "dtype": "int8", "opset": 23, "ir_version": 11, "bits": 8,
        "table_bits": 8, "block": 32,
    }  # fmt: skip
    assert told == {key: str(value) for key, value in expected.items()}
    record = json.loads((folder / "ragjax.json").read_text())
    assert record["history"] == [{"did": "prune"}, {"did": "export", **expected}]
    assert load_onnx(folder).history == tuple(record["history"])


def test_constants_are_once_in_the_file_and_begin_at_pages(folder):
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    names = [each.name for each in graph.initializer]
    assert len(names) == len(set(names))
    assert sum(name.startswith(("embedding.tokens", "head")) for name in names) == 2
    places = [
        {entry.key: entry.value for entry in each.external_data}
        for each in graph.initializer
        if each.external_data
    ]
    assert {place["location"] for place in places} == {"model.onnx.data"}
    assert not any(int(place["offset"]) % 4096 for place in places)


def test_the_lines_of_the_readme_run_where_ragjax_is_not(tmp_path, tiny_byte_model):
    folder = export_onnx(tiny_byte_model, tmp_path / "m")
    [lines] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    alone = "import sys; sys.modules.update(dict.fromkeys(['ragjax', 'jax', 'flax', 'onnx']))\n"
    done = subprocess.run(
        [sys.executable, "-c", alone + lines], cwd=folder, capture_output=True, text=True, timeout=120
    )
    [more] = generate_tokens(tiny_byte_model, [[1, 2, 3]], max_new_tokens=8, stop_at_eos=False)
    assert done.stdout == f"{[1, 2, 3, *more.tolist()]}\n", done.stderr


def test_a_folder_is_known_by_its_files_and_is_no_model_to_train(folder, tiny_byte_model, tmp_path):
    assert is_onnx(folder)
    assert load_onnx(folder).tokenizer.encode("abc") == tiny_byte_model.tokenizer.encode("abc")
    with pytest.raises(InputError, match="holds an ONNX graph"):
        load(folder)
    assert not is_onnx(tmp_path)
    with pytest.raises(InputError, match=r"model.onnx, model.onnx.data, config.json, ragjax.json missing"):
        load_onnx(tmp_path)


def test_no_threads_are_refused(folder, tiny_byte_model):
    for opened in (load_onnx, in_onnxruntime):
        with pytest.raises(InputError, match="threads must be at least 1, found 0"):
            opened(folder if opened is load_onnx else tiny_byte_model, threads=0)


def test_a_damaged_graph_is_named(tmp_path, tiny_byte_model):
    folder = export_onnx(tiny_byte_model, tmp_path / "m")
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="onnxruntime cannot open it"):
        load_onnx(folder)


def test_nothing_is_overwritten_and_nothing_half_written_is_left(folder, tmp_path, tiny_byte_model):
    before = (folder / "model.onnx").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        export(tiny_byte_model, folder, format="onnx")
    assert (folder / "model.onnx").read_bytes() == before
    norm = {"scale": jnp.full(32, jnp.nan), "bias": jnp.zeros(32)}
    table = {**tiny_byte_model.params["embedding"], "tokens": jnp.full((384, 32), jnp.inf)}
    bad = Model(tiny_byte_model.config, {**tiny_byte_model.params, "final_norm": norm, "embedding": table})
    for dtype, name in {"float32": "embedding.tokens.weight", "int8": "embedding.tokens.scales"}.items():
        with pytest.raises(InputError, match=rf"not finite:\n  - {name}\n  - final_norm.scale"):
            export_onnx(bad, tmp_path / "m", dtype=dtype)
    with pytest.raises(InputError, match="float32, int8, int8_128, int4, found 'int2'"):
        export_onnx(tiny_byte_model, tmp_path / "m", dtype="int2")
    assert list(tmp_path.iterdir()) == []


def test_of_a_quantized_model_the_floats_are_written(tiny_byte_model):
    small = quantize(tiny_byte_model, Quantize()).model
    there = in_onnxruntime(small, threads=1)
    found = Network(there, batch=1, room=8).read([[1, 2, 3]])
    np.testing.assert_allclose(found, small.in_floats()(np.array([[1, 2, 3]]))[:, -1], atol=1e-4)
    assert [entry["did"] for entry in there.history[-2:]] == ["dequantize", "export"]


def test_without_the_packages_the_way_to_install_them_is_told(folder, tmp_path, tiny_byte_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"written with the package onnx,.*pip install 'ragjax\[onnx\]'"):
        export(tiny_byte_model, tmp_path / "m", format="onnx")
    with pytest.raises(InputError, match=r"run with the package onnxruntime,.*pip install 'ragjax\[onnx\]'"):
        load_onnx(folder)
