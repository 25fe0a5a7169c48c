"""Commands as a person types them: in a process of their own where exit codes and imports matter."""

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
from ragjax.doctor import examine
from ragjax.evaluation.speed import Speed
from ragjax.generation import generate
from ragjax.interchange.folder import save
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


def command(environment, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "ragjax", *map(str, arguments)],
        env=environment, capture_output=True, text=True, **options,
    )  # fmt: skip


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    return stopped.value.code, capsys.readouterr()


def test_without_a_verb_all_verbs_are_listed(capsys):
    main([])
    told = capsys.readouterr().out
    for verb in ("compress", "train", "eval", "generate", "tokenizer", "report", "doctor"):
        assert verb in told


@pytest.mark.parametrize("verb", ["compress", "train", "eval", "generate", "tokenizer", "report", "doctor"])
def test_every_verb_explains_itself(capsys, verb):
    code, told = fails(capsys, verb, "--help")
    assert code == 0
    assert f"ragjax {verb}" in told.out


def test_help_and_config_errors_need_no_jax():
    script = (
        "import sys\nfrom ragjax.cli import main\n"
        "for given in (['--help'], ['compress', '--help'], ['compress', 'none.py'], "
        "['compress', 'configs/quickstart.py', '--train.stepz', '3'], ['eval', '--help']):\n"
        "    try: main(given)\n"
        "    except SystemExit: pass\n"
        "assert not {'jax', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compres"], "did you mean compress"),
        (["compress"], "A config file comes first"),
        (["compress", "nowhere.py"], "is not a file"),
        (["compress", "configs/quickstart.py", "--train.lerning-rate", "1"], "--train.learning-rate"),
        (["compress", "configs/quickstart.py", "--train.steps", "0"], "steps must be at least 1"),
        (["compress", "configs/quickstart.py", "--sparsity.pattern", "dots"], "n_of_m"),
        (["train", "configs/quickstart.py"], "use `ragjax compress"),
        (["eval", "/no/such/model"], "/no/such/model"),
        (["report", "/no/such/run"], "/no/such/run"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(capsys, arguments, said):
    code, told = fails(capsys, *arguments)
    assert code == 2
    assert said in told.err
    assert told.out == ""
    assert "Traceback" not in told.err


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


def test_generate_continues_the_prompt(tiny_byte_model, tmp_path, capsys):
    save(tiny_byte_model, tmp_path / "model")
    line = ["generate", str(tmp_path / "model"), "--prompt", "ab", "--max-new-tokens", "5"]
    for options, flags in (
        ({}, []),
        ({"temperature": 2.0, "seed": 3}, ["--temperature", "2", "--seed", "3"]),
    ):
        main(line + flags)
        expected = generate(tiny_byte_model, ["ab"], max_new_tokens=5, **options)
        assert capsys.readouterr().out == f"ab{expected[0]}\n"


def test_a_tokenizer_is_trained_from_a_source(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one two three " * 50)
    main(["tokenizer", f"text:{tmp_path}/*.txt", str(tmp_path / "out"), "--vocab-size", "260"])
    assert f"{tmp_path / 'out'}: 260 tokens" in capsys.readouterr().out
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    code, told = fails(capsys, "tokenizer", f"text:{tmp_path}/*.txt", tmp_path / "out")
    assert code == 2
    assert "exists already" in told.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


@pytest.mark.parametrize(
    "wrong", [("--stride", "0"), ("--batch-size", "0"), ("--max-tokens", "-3"), ("--sequence-length", "0")]
)
def test_eval_refuses_numbers_below_one(tiny_byte_model, tmp_path, capsys, wrong):
    save(tiny_byte_model, tmp_path / "model")
    code, told = fails(capsys, "eval", tmp_path / "model", *wrong)
    assert code == 2
    assert "must be at least 1" in told.err


@pytest.mark.parametrize(("folder", "said"), [("file", "is a file"), ("file/run", "cannot be written")])
def test_a_run_folder_that_cannot_be_made_is_one_message(tmp_path, capsys, folder, said):
    (tmp_path / "file").write_text("")
    code, told = fails(capsys, "compress", "configs/quickstart.py", "--workdir", tmp_path / folder)
    assert code == 2
    assert said in told.err
    assert "choose another --workdir" in told.err


def test_a_misspelt_field_in_a_config_file_is_named(tmp_path, capsys):
    (tmp_path / "c.py").write_text("from ragjax.config import *\nconfig = Compress(train=Train(stepz=3))")
    code, told = fails(capsys, "compress", tmp_path / "c.py")
    assert code == 2
    assert "Train has no field stepz; did you mean steps?" in told.err


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
def test_each_end_of_a_run_has_its_exit_code(monkeypatch, capsys, error, code, said):
    def compress(*_):
        raise error

    monkeypatch.setattr("ragjax.recipe.compress", compress)
    found, told = fails(capsys, "compress", "configs/quickstart.py", "--workdir", "/there")
    assert found == code
    assert said in told.err


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["the disk is full"], 2)])
def test_doctor_exits_with_2_where_something_is_amiss(monkeypatch, capsys, problems, code):
    monkeypatch.setattr("ragjax.doctor._MATMUL", 16)
    findings = examine() | {"problems": problems}
    monkeypatch.setattr("ragjax.doctor.examine", lambda: findings)
    found, told = fails(capsys, "doctor")
    assert found == code
    assert ("the disk is full" in told.out) == bool(problems)
    found, told = fails(capsys, "doctor", "--json")
    assert (found, json.loads(told.out)) == (code, findings)


def test_report_writes_to_the_file_it_is_given(monkeypatch, capsys):
    monkeypatch.setattr("ragjax.report.write_report", lambda run, out: f"{run} in {out}")
    for flags, out in (([], None), (["--out", "page.html"], "page.html")):
        main(["report", "/run", *flags])
        assert capsys.readouterr().out == f"/run in {out}\n"


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.3" if name == "ragjax" else "0")
    main(["--version"])
    assert capsys.readouterr().out == "ragjax 1.2.3\n"
