import importlib.util
import json

from ragjax.cli import main

QUICKSTART = "configs/quickstart.py"


def test_a_plan_of_shapes_is_a_table(capsys):
    main(["plan", QUICKSTART, "--topology", "v5e:2x2", "--shapes", "--train.batch-size", "16"])
    told = capsys.readouterr().out
    assert "v5e:2x2, data 4 x fsdp 1 x tensor 1" in told
    assert "of 16 GB: without activations" in told


def test_a_plan_of_shapes_is_an_object(capsys):
    main(["plan", QUICKSTART, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["chips"] == 1
    assert told["fits"] is told["compiler_seconds"] is told["collectives"] is None


def test_without_libtpu_it_says_what_to_install(monkeypatch, refused):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    told = refused("plan", QUICKSTART, "--topology", "v5e:2x2")
    assert "pip install 'ragjax[tpu]'" in told
    assert "--shapes" in told


def test_a_slice_there_is_not_is_refused(refused):
    assert "v5e:4x4" in refused("plan", QUICKSTART, "--topology", "tpu-16")
