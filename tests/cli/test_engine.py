"""Models in onnxruntime, as a person asks for them."""

import sys

import pytest

import ragjax
from ragjax.cli import main

ASKED = ("--prompt", "once upon", "--max-new-tokens", "12", "--temperature", "0.8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_byte_model):
    return ragjax.save(tiny_byte_model, tmp_path_factory.mktemp("model") / "m")


def test_both_engines_print_the_same_text(folder, tmp_path, capsys):
    main(["generate", str(folder), *ASKED])
    expected = capsys.readouterr().out
    main(["generate", str(folder), "--engine", "onnx", "--threads", "1", *ASKED])
    assert capsys.readouterr().out == expected
    out = tmp_path / "my onnx"
    main(["export", str(folder), str(out), "--format", "onnx"])
    told = capsys.readouterr().out
    assert "an ONNX graph for onnxruntime, weights float32" in told
    assert f"ragjax generate '{out}'" in told
    size = sum(file.stat().st_size for file in out.iterdir())
    assert f"{size / 1e6:,.1f} MB" in told
    main(["generate", str(out), *ASKED])
    assert capsys.readouterr().out == expected


def test_a_smaller_one_writes_too(folder, tmp_path, capsys):
    main(["export", str(folder), str(tmp_path / "int4"), "--format", "onnx", "--dtype", "int4"])
    assert "weights int4" in capsys.readouterr().out
    main(["generate", str(tmp_path / "int4"), *ASKED])
    assert capsys.readouterr().out.startswith("once upon")


def test_what_does_not_fit_is_refused_before_a_model_is_read(folder, refused, monkeypatch):
    ask = ("generate", "no-such/model", "--prompt", "x")
    told = refused(*ask, "--engine", "onnx", "--beams", "2", "--draft", "also/none")
    assert "beams is 2" in told
    assert "there is a draft" in told
    told = refused("serve", "no-such/model", "--port", "0", "--engine", "onnx", "--cache-dtype", "bfloat16")
    assert "cache_dtype is bfloat16" in told
    assert "threads are those of onnxruntime" in refused(*ask, "--threads", "2")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'ragjax[onnx]'" in refused("generate", folder, "--prompt", "x", "--engine", "onnx")


def test_a_graph_is_no_model_for_jax(folder, tmp_path, refused):
    main(["export", str(folder), str(tmp_path / "m"), "--format", "onnx"])
    assert "holds an ONNX graph" in refused("generate", tmp_path / "m", "--prompt", "x", "--engine", "jax")
