"""The verbs that run a config file, and how their runs end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ragjax.cli import main
from ragjax.config import Compress, Pretrain, to_dict
from ragjax.training.loop import Diverged, Interrupted

TINY = """
from ragjax.config import *
config = Compress(
    teacher=Teacher(architecture=Architecture(layers=2, width=32, heads=2, positions=64),
                    train=Train(steps=4000, batch_size=8, warmup=1, log_every=5, checkpoint_every=50)),
    student=Student(layers=1),
    data=Data(train="text:{folder}/*.txt", sequence_length=32, vocab_size=300),
    train=Train(steps=6, batch_size=8, warmup=1),
)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {"RAGJAX_CACHE": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "200"}


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(environment, tmp_path, number):
    rng = np.random.default_rng(0)
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(" ".join(map(str, rng.integers(0, 500, 80))))
    (tmp_path / "tiny.py").write_text(TINY.format(folder=tmp_path))
    line = [
        sys.executable,
        "-m",
        "ragjax",
        "compress",
        str(tmp_path / "tiny.py"),
        "--workdir",
        str(tmp_path / "r"),
    ]
    running = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "r" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 2:
            break
        time.sleep(0.2)
    running.send_signal(number)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 75, told
    assert "its state is saved" in told
    assert "ragjax compress" in told
    assert "Traceback" not in told
    saved = [
        int(p.name) for p in (tmp_path / "r" / "checkpoints" / "teacher").iterdir() if p.name.isdecimal()
    ]
    assert saved
    running = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    told = ""
    while "resumed at step" not in told and (read := running.stdout.readline()):
        told += read
    running.kill()
    running.communicate()
    assert f"resumed at step {max(saved)}" in told


@pytest.mark.parametrize(("folder", "said"), [("file", "is a file"), ("file/run", "cannot be written")])
def test_a_run_folder_that_cannot_be_made_is_one_message(tmp_path, refused, folder, said):
    (tmp_path / "file").write_text("")
    told = refused("compress", "configs/quickstart.py", "--workdir", tmp_path / folder)
    assert said in told
    assert "choose another --workdir" in told


def test_a_misspelt_field_in_a_config_file_is_named(tmp_path, refused):
    (tmp_path / "c.py").write_text("from ragjax.config import *\nconfig = Compress(train=Train(stepz=3))")
    assert "Train has no field stepz; did you mean steps?" in refused("compress", tmp_path / "c.py")


@pytest.fixture
def called(monkeypatch):
    """What `compress` and `pretrain` are called with, instead of being run."""
    calls = []
    for name in ("compress", "pretrain"):
        monkeypatch.setattr(f"ragjax.recipe.{name}", lambda *given, name=name: calls.append((name, *given)))
    return calls


def test_flags_change_the_config_and_workdir_names_the_run_folder(called):
    line = ["compress", "configs/quickstart.py", "--train.steps", "77", "--student.layers", "2"]
    main([*line, "--scratch", "--workdir", "/there"])
    ((verb, config, workdir),) = called
    assert (verb, str(workdir)) == ("compress", "/there")
    assert (config.train.steps, config.student.layers, config.student.scratch) == (77, 2, True)


@pytest.mark.parametrize(("verb", "config"), [("compress", Compress(seed=3)), ("train", Pretrain(seed=3))])
def test_without_workdir_the_run_folder_follows_from_the_config_file(called, tmp_path, verb, config):
    kind = type(config).__name__
    (tmp_path / "mine.py").write_text(f"from ragjax.config import *\nconfig = {kind}(seed=3)")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    main([verb, str(tmp_path / "mine.py")])
    main([verb, str(tmp_path / "config.json")])
    name = {"train": "pretrain"}.get(verb, verb)
    assert called == [(name, config, Path("runs/mine")), (name, config, tmp_path)]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Interrupted("stopped at step 3"), 75, "Go on with: ragjax compress /there/config.json"),
        (Diverged("lower the learning rate"), 3, "lower the learning rate"),
        (KeyboardInterrupt(), 130, "stopped at once"),
    ],
)
def test_each_end_of_a_run_has_its_exit_code(monkeypatch, ended, error, code, said):
    def compress(*_):
        raise error

    monkeypatch.setattr("ragjax.recipe.compress", compress)
    found, told = ended("compress", "configs/quickstart.py", "--workdir", "/there")
    assert found == code
    assert said in told.err
