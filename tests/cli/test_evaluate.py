"""The verb `eval`."""

import json

import pytest

from ragjax.cli import main
from ragjax.evaluation.speed import Speed
from ragjax.interchange.folder import save


def test_eval_prints_its_stable_keys_as_json(tiny_byte_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))
    save(tiny_byte_model, tmp_path / "model")
    (tmp_path / "a.txt").write_text("Some words to be measured. " * 10)
    main(["eval", str(tmp_path / "model"), "--data", f"text:{tmp_path}/*.txt", "--stride", "16", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= {
        "perplexity", "bits_per_byte", "word_perplexity", "tokens", "parameters", "nonzero_parameters",
        "sparsity_prunable", "sparsity_total", "stored_bytes", "tokens_per_second",
    }  # fmt: skip
    assert found["tokens"] == 270
    assert 100 < found["perplexity"] < 1000
    assert found["stored_bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert found["speed_vs_teacher"] is None


def test_eval_measures_the_speed_in_turns_with_the_teachers(tiny_byte_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))
    save(tiny_byte_model, tmp_path / "model")
    (tmp_path / "a.txt").write_text("Some words to be measured.")
    asked = []

    def forward_speed(models, **_):
        asked.extend(models)
        return {"teacher": Speed(10.0, 1.0, (10.0,)), "model": Speed(20.0, 2.0, (20.0,))}

    monkeypatch.setattr("ragjax.evaluation.speed.forward_speed", forward_speed)
    model = str(tmp_path / "model")
    main(["eval", model, "--teacher", model, "--data", f"text:{tmp_path}/*.txt", "--json"])
    found = json.loads(capsys.readouterr().out)
    # The first is what the others are compared with.
    assert asked == ["teacher", "model"]
    assert (found["tokens_per_second"], found["speed_vs_teacher"]) == (20.0, 2.0)


@pytest.mark.parametrize(
    "wrong", [("--stride", "0"), ("--batch-size", "0"), ("--max-tokens", "-3"), ("--sequence-length", "0")]
)
def test_eval_refuses_numbers_below_one(tiny_byte_model, tmp_path, refused, wrong):
    save(tiny_byte_model, tmp_path / "model")
    assert "must be at least 1" in refused("eval", tmp_path / "model", *wrong)
