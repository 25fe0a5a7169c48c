"""`ragjax quantize` as a person types it."""

import json

import numpy as np
import pytest

from ragjax.cli import main
from ragjax.interchange import load, save
from ragjax.interchange.quantized import FILE
from ragjax.models.stand_ins import has_stand_ins
from ragjax.quantization.stream import quantize_blocks


@pytest.fixture
def line(tiny_byte_model, tmp_path, monkeypatch):
    """`quantize MODEL OUT`, and OUT."""
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    save(tiny_byte_model, tmp_path / "model")
    return ["quantize", str(tmp_path / "model"), str(tmp_path / "out")], tmp_path / "out"


def test_it_writes_a_smaller_model_and_tells_what_it_cost(line, tmp_path, capsys):
    given, out = line
    (tmp_path / "a.txt").write_text("Some words to be read with care. " * 20)
    main([*given, "--scheme", "int4", "--tables", "int8", "--data", f"text:{tmp_path}/a.txt"])
    told = capsys.readouterr().out
    for row in ("weights on disk, MB", "bits of a quantized", "4.50", "perplexity", "mlp/down/kernel"):
        assert row in told
    assert f"ragjax eval {out}" in told
    assert "--dtype q4_0" in told
    assert has_stand_ins(load(out).params)


def test_folders_with_brackets_are_told_whole(line, tmp_path, capsys, monkeypatch):
    folders = ["[bold]", "[b]", "model [red]"]
    (tmp_path / "model").rename(tmp_path / folders[0])
    monkeypatch.chdir(tmp_path)
    main(["quantize", folders[0], folders[1], "--data", "builtin:python", "--max-tokens", "64"])
    main(["prune", folders[0], folders[2], "--method", "magnitude", "--sparsity", "0.5"])
    main(["bench", folders[0], "--against", folders[1], "--new-tokens", "2", "--rounds", "1", "--batch", "1"])
    told = capsys.readouterr().out
    for text in ("quantize [bold]:", "saved [b];", "saved [b] after", "prune [bold]:", "saved model [red];"):
        assert text in told
    assert "report model [red]/report.html" in told
    assert "times: of [bold], paired" in told


def test_json_has_the_figures_and_floats_can_be_had(line, capsys):
    given, out = line
    main([*given, "--format", "dequantized", "--json"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "layers/mlp/up/kernel" in told.err
    assert found["bits_per_weight"] == pytest.approx(8 + 16 * 224 / (4 * 32 * 32 + 2 * 32 * 64), abs=0.2)
    assert found["stored_bytes"][1] == (out / "model.safetensors").stat().st_size
    assert not (out / FILE).exists()
    back = load(out)
    assert [entry["did"] for entry in back.history[-2:]] == ["quantize", "dequantize"]
    assert np.mean(found["errors"]["layers/mlp/up/kernel"]) < 0.01


def test_no_tokens_to_measure_are_refused_before_the_work(line, refused):
    given, out = line
    assert "--max-tokens must be at least 1, found 0" in refused(
        *given, "--data", "builtin:python", "--max-tokens", "0"
    )
    assert not out.exists()


def test_a_place_that_is_taken_is_refused_before_the_model_is_read(line, refused):
    given, out = line
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "exists already" in refused(*given)


def test_stopped_the_same_command_goes_on(line, tmp_path, capsys, asking_to_stop):
    given, out = line
    (tmp_path / "a.txt").write_text("Some words to be read with care. " * 40)
    text = ["--calibration", f"text:{tmp_path}/*.txt", "--samples", "4", "--sequence-length", "32"]
    words = [*given, "--method", "gptq", *text]
    with asking_to_stop(quantize_blocks, "quantize_block"), pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 75
    assert (
        f"1 of 2 blocks are kept in {out}.unfinished. Go on with: the same command" in capsys.readouterr().err
    )
    assert not out.exists()
    main(words)
    told = capsys.readouterr().out
    assert f"going on from {out}.unfinished" in told
    assert "layer 2/2" in told
    assert has_stand_ins(load(out).params)
    assert {file.name for file in tmp_path.iterdir()} == {"model", "a.txt", "cache", "out"}


def test_to_the_nearest_leaves_alone_what_another_command_keeps(line, tmp_path, capsys):
    given, out = line
    kept = out.with_name("out.unfinished")
    kept.mkdir()
    (kept / "asked.json").write_text("{}")
    (kept / "block_00000.safetensors").write_bytes(b"of a pruning")
    main(given)
    assert "going on" not in capsys.readouterr().out
    assert sorted(file.name for file in kept.iterdir()) == ["asked.json", "block_00000.safetensors"]
