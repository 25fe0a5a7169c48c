"""The verb `export`, as a person types it."""

import pytest

import ragjax
from ragjax.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_byte_model):
    return ragjax.save(tiny_byte_model, tmp_path_factory.mktemp("model") / "m")


def test_a_model_goes_from_folder_to_gguf_and_back(capsys, tmp_path, tiny_model):
    folder = ragjax.save(tiny_model, tmp_path / "m")
    file, back = tmp_path / "my model.gguf", tmp_path / "back"
    main(["export", str(folder), str(file), "--format", "gguf", "--dtype", "q8_0"])
    told = capsys.readouterr().out
    assert "Q8_0" in told
    assert "F32" in told
    assert f"{file.stat().st_size / 1e6:,.1f} MB" in told
    assert f"llama-cli -m '{file}'" in told
    main(["export", str(file), str(back), "--format", "hf", "--dtype", "bfloat16"])
    assert "from_pretrained" in capsys.readouterr().out
    assert ragjax.load(back).config.layers == tiny_model.config.layers


def test_a_bad_request_is_refused_before_the_model_is_looked_for(refused, tmp_path):
    (tmp_path / "there.gguf").write_text("mine")
    for rest, message in {
        ("there.gguf", "--format", "gguf"): "exists already",
        ("new.gguf", "--format", "gguf", "--dtype", "int4"): "dtype of the format gguf must be one of",
    }.items():
        assert message in refused("export", "no-such/model", tmp_path / rest[0], *rest[1:])


def test_what_a_format_cannot_say_ends_with_code_2(refused, tmp_path, folder):
    assert "no merges" in refused("export", folder, tmp_path / "m.gguf", "--format", "gguf")
    assert not list(tmp_path.iterdir())
