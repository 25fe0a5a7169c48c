"""The verb `bench`."""

import json

import pytest

import ragjax
from ragjax.benchmark import Measured, Report, measure, print_report
from ragjax.benchmark.bandwidth import Reader
from ragjax.benchmark.figures import Figures
from ragjax.cli import main
from ragjax.config import Bench

ASKED = ("--batch", "2", "--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_byte_model):
    return ragjax.save(tiny_byte_model, tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(autouse=True)
def small_reader(monkeypatch):
    monkeypatch.setattr(measure, "Reader", lambda: Reader(64))


def test_both_engines_are_measured_side_by_side(folder, tmp_path, capsys):
    out = tmp_path / "small"
    main(["export", str(folder), str(out), "--format", "onnx", "--dtype", "int8"])
    capsys.readouterr()
    main(["bench", str(folder), "--against", str(out), str(folder), *ASKED, "--threads", "1", "--json"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "round 1 of 1" in told.err
    assert [one["engine"] for one in found["models"]] == ["jax", "onnx", "jax"]
    assert found["options"]["batch"] == [2]
    assert found["bandwidth_bytes_per_second"] > 0
    first, small, again = (one["batch"]["2"] for one in found["models"])
    assert first["decode_ratio"] == 1
    assert small["bytes_per_token"] < first["bytes_per_token"] / 2
    assert again["bytes_per_token"] == first["bytes_per_token"]


def test_a_person_reads_a_table_and_what_to_do_next(folder, capsys):
    main(["bench", str(folder), "--engine", "onnx", *ASKED])
    told = capsys.readouterr().out
    for each in (
        "batch 2",
        "token ms",
        "of band-",
        "MB/token",
        "8 random tokens a prompt",
        "GB/s",
        "--against OTHER",
    ):
        assert each in told


def test_the_fastest_is_named_with_what_runs_it(capsys):
    def figures(speed):
        return {1: Figures(0.5, 16.0, speed, 2e6, 0.25, 1.0, speed / 10)}

    models = (
        Measured("a", "jax", "float32", 1, figures(10.0)),
        Measured("my b", "onnx", "int8", 1, figures(30.0)),
    )
    print_report(Report("a machine", 8e9, Bench(batch=(1,)), models, "2026-11-02", {}))
    told = capsys.readouterr().out
    assert "ragjax generate 'my b' --engine onnx --prompt" in told
    row, what = [line.split() for line in told.split("\n") if line.startswith("my b")]
    assert what == ["my", "b", "onnx", "int8", "1"]
    assert row == ["my", "b", "(onnx)", "500.0", "16", "1.00", "30.0", "3.00", "2.00", "25%"]


def test_what_cannot_be_measured_is_told_at_once(refused):
    told = refused("bench", "none", "--batch", "0", "--new-tokens", "1", "--rounds", "0", "--threads", "0")
    for name in ("batch must be", "new_tokens must be", "rounds must be", "threads must be"):
        assert name in told
    assert "each once, found 2 2" in refused("bench", "none", "--batch", "2", "2")
    assert "threads are those of onnxruntime" in refused("bench", "none", "--threads", "2")


def test_all_models_that_are_not_there_are_named_before_one_is_read(folder, tmp_path, refused):
    told = refused("bench", folder, "--against", tmp_path / "one", folder, tmp_path / "other")
    assert str(tmp_path / "one") in told
    assert str(tmp_path / "other") in told


def test_a_comparison_of_a_run_s_models_is_kept_in_its_folder(folder, tmp_path, tiny_byte_model, capsys):
    run = tmp_path / "a run"
    for name in ("teacher", "student"):
        ragjax.save(tiny_byte_model, run / name)
    (run / "summary.json").write_text(json.dumps({"teacher": {}, "student": {"perplexity": 9.0}}))
    main(["bench", str(run), *ASKED])
    assert not (run / "bench.json").exists()
    capsys.readouterr()
    main(["bench", str(run), "--against", str(run / "teacher"), *ASKED])
    assert f"ragjax report '{run}' draws it" in capsys.readouterr().out
    kept = json.loads((run / "bench.json").read_text())
    assert [model["role"] for model in kept["models"]] == ["student", "teacher"]
    main(["report", str(run)])
    assert "What writing costs" in (run / "report.html").read_text()
