import importlib.util
import sys

import jax
import numpy as np
import pytest

import ragjax
from ragjax.errors import InputError
from ragjax.interchange.formats import FORMATS, check_request, export


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_model_comes_back_from_every_format_it_is_exported_to(tmp_path, tiny_model, format):
    made = export(tiny_model, tmp_path / "out", format=format)
    back = ragjax.load(made.path)
    jax.tree.map(np.testing.assert_array_equal, back.params, tiny_model.params)
    files = [made.path] if made.path.is_file() else list(made.path.iterdir())
    assert made.size == sum(file.stat().st_size for file in files)
    assert str(tmp_path / "out") in made.use


@pytest.mark.parametrize(
    ("format", "dtype", "share"), [("hf", "bfloat16", 1 / 2), ("gguf", "q8_0", 8.5 / 32)]
)
def test_the_type_of_the_weights_is_that_which_was_asked_for(tmp_path, tiny_model, format, dtype, share):
    sizes = [
        export(tiny_model, tmp_path / str(kind), format=format, dtype=kind).size for kind in (None, dtype)
    ]
    # Besides weights there are norms, biases and what is told of the model.
    assert share < sizes[1] / sizes[0] < share + 0.15


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"format": "coreml"}, "format must be one of hf, bitmask, gguf.*found 'coreml'"),
        ({"format": "hf", "dtype": "q8_0"}, "dtype of the format hf must be one of float32.*found 'q8_0'"),
        (
            {"format": "gguf", "dtype": "float32"},
            "dtype of the format gguf must be one of f32.*found 'float32'",
        ),
    ],
)
def test_unknown_formats_and_types_are_refused_by_name(tmp_path, tiny_model, request_, message):
    with pytest.raises(InputError, match=message):
        export(tiny_model, tmp_path / "out", **request_)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_that_is_there_is_replaced(tmp_path, tiny_model, format):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(InputError, match="exists already"):
            export(tiny_model, tmp_path / name, format=format)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "mine"


def test_a_request_is_refused_before_any_model_is_loaded(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="as a folder: name the file to write"):
        check_request(tmp_path, "gguf", None)
    for format, package in (("gguf", "gguf"), ("stablehlo", "flatbuffers")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            without.setattr(importlib.util, "find_spec", lambda name: None)
            with pytest.raises(InputError, match=rf"pip install 'ragjax\[{format}\]'"):
                check_request(tmp_path / "new", format, None)
        assert check_request(tmp_path / "new", format, None) == FORMATS[format].dtypes[0]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        check_request(tmp_path / "file" / "model", "hf", None)
