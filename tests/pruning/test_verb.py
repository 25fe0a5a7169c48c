"""`ragjax prune` as a person types it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ragjax.cli import main
from ragjax.config import OneShot
from ragjax.interchange.folder import load, save
from ragjax.pruning.one_shot import PruneReport
from ragjax.pruning.verb import print_report, summary
from ragjax.sparsity.calibrated.methods import MatrixFigures
from ragjax.sparsity.calibrated.stream import LayerFigures
from ragjax.sparsity.figures import sparsity_figures


@pytest.fixture
def line(tiny_byte_model, tmp_path, monkeypatch):
    """`prune MODEL OUT` with a short text, and OUT."""
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    save(tiny_byte_model, tmp_path / "model")
    (tmp_path / "a.txt").write_text("Some words to be read with care. " * 40)
    text = ["--calibration", f"text:{tmp_path}/*.txt", "--samples", "4", "--sequence-length", "32"]
    return ["prune", str(tmp_path / "model"), str(tmp_path / "out"), *text], tmp_path / "out"


def test_it_writes_a_model_and_tells_what_it_did(line, capsys):
    given, out = line
    main(given)
    told = capsys.readouterr().out
    assert "wanda, 50%, 4 sequences of 32 tokens" in told
    assert "layer 1/2  error 0." in told
    assert "tokens/s  up to " in told
    assert "layer 2/2" in told
    for row in ("sparsity asked for", "reached, prunable weights", "weights on disk", "peak memory"):
        assert row in told
    assert f"ragjax eval {out}" in told
    sparse = load(out)
    assert sparsity_figures(sparse.params, sparse.config).sparsity_prunable == 0.5
    record = json.loads((out / "ragjax.json").read_text())
    assert record["history"][-1]["did"] == "prune"
    assert record["masks"]["sparsity"] == 0.5


def test_json_has_the_figures_and_progress_goes_elsewhere(line, capsys):
    given, out = line
    main([*given, "--json", "--method", "magnitude", "--budget", "erk", "--mesh.data", "2"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "layer 2/2" in told.err
    assert found["out"] == str(out)
    assert found["sparsity_prunable"] == pytest.approx(0.5, abs=1e-3)
    assert found["stored_bytes"] == (out / "model.safetensors").stat().st_size
    assert found["peak_bytes"] > 10e6
    assert [sorted(layer["matrices"]) for layer in found["layers"]] == [
        sorted(found["layers"][0]["matrices"])
    ] * 2
    up = found["layers"][1]["matrices"]["layers/mlp/up/kernel"]
    assert up["sparsity"] == pytest.approx(up["asked"], abs=1e-3)
    assert up["error"] is None


def test_a_folder_that_is_there_is_refused_before_the_model_is_read(line, refused, monkeypatch):
    given, out = line
    out.mkdir()
    (out / "precious").write_text("")
    monkeypatch.setattr("ragjax.pruning.verb.load", lambda *_, **__: pytest.fail("read the model"))
    assert "exists already" in refused(*given)
    assert [file.name for file in out.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--sparsity", "1"], "sparsity must be at least 0 and below 1"),
        (["--sparsty", "0.5"], "--sparsity"),
        (["--method", "wnda"], "wanda"),
        (["--budget", "fair"], "owl"),
        (["--sequence-length", "65"], "the model's 64 positions"),
        (["--samples", "500"], "500 sequences of 32 tokens need"),
        (["--pattern", "n_of_m", "--m", "5"], "groups of m = 5"),
        (["--calibration", "txt:a"], "Did you mean text:"),
        (["--prunable", "layers/mpl/*"], "layers/mlp/up/kernel"),
        (["--mesh.data", "3"], "samples 4 must be divisible"),
        (["--mesh.data", "64"], "The mesh must use"),
    ],
)
def test_what_cannot_be_is_one_message_and_nothing_is_written(line, refused, wrong, said):
    given, out = line
    assert said in refused(*given, *wrong)
    assert not out.exists()


def test_stopped_halfway_it_leaves_nothing(line, capsys, monkeypatch):
    given, out = line

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ragjax.sparsity.calibrated.stream.prune_block", stop)
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 130
    assert not out.exists()
    assert {file.name for file in out.parent.iterdir()} == {"model", "a.txt", "cache"}


def test_stopped_while_its_speed_is_measured_it_keeps_the_model_and_its_page(line, monkeypatch, capsys):
    given, out = line

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ragjax.pruning.files.forward_speed", stop)
    with pytest.raises(SystemExit):
        main(given)
    assert sparsity_figures((sparse := load(out)).params, sparse.config).sparsity_prunable == 0.5
    assert "not measured" in (out / "report.html").read_text()
    assert f"saved {out}" in capsys.readouterr().out


def test_help_and_errors_in_the_config_need_no_jax():
    script = (
        "import sys\nfrom ragjax.cli import main\n"
        "for given in (['prune', '--help'], ['prune', 'm', 'o', '--sparsity', '2'], ['prune', 'm']):\n"
        "    try: main(given)\n"
        "    except SystemExit: pass\n"
        "assert not {'jax', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_grams_that_had_to_be_helped_are_told(line, capsys, tiny_byte_model):
    given, out = line
    main(given)
    capsys.readouterr()

    def figures(dampening, dead=0):
        return MatrixFigures(np.float32(0.5), None, np.float32(dampening), np.int32(dead))

    layer = LayerFigures(1, 0.1, {"up": figures(0.01), "down": figures(0.1, 3), "out": figures(np.inf)}, 1.0)
    names = {name: np.full(2, 0.5) for name in layer.matrices}
    told = sparsity_figures(tiny_byte_model.params, tiny_byte_model.config)
    print_report(PruneReport(OneShot(method="sparsegpt"), {}, [layer], told, 1, 1.0), out)
    said = capsys.readouterr().out
    found = summary(PruneReport(OneShot(method="sparsegpt"), names, [layer], told, 1, 1.0), out)
    assert found["layers"][0]["matrices"]["out"]["dampening"] is None
    json.dumps(found, allow_nan=False)
    assert "1 matrices have inputs that were 0 at every token" in said
    assert "down of layer 1: 0.1" in said
    assert "out of layer 1" in said.split("no dampening made usable")[1]
    assert "up of layer 1" not in said
