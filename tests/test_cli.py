"""Commands as a person types them: in a process of their own where exit codes and imports matter."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ragjax.cli import main
from ragjax.interchange.folder import save

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
    assert said in told.err + told.out
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


def test_generate_continues_the_prompt(tiny_byte_model, tmp_path, capsys):
    save(tiny_byte_model, tmp_path / "model")
    main(["generate", str(tmp_path / "model"), "--prompt", "ab", "--max-new-tokens", "5"])
    assert capsys.readouterr().out.startswith("ab")


def test_a_tokenizer_is_trained_from_a_source(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one two three " * 50)
    main(["tokenizer", f"text:{tmp_path}/*.txt", str(tmp_path / "out"), "--vocab-size", "280"])
    assert "tokens" in capsys.readouterr().out
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


def test_a_run_folder_that_cannot_be_made_is_one_message(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, told = fails(capsys, "compress", "configs/quickstart.py", "--workdir", tmp_path / "file" / "run")
    assert code == 2
    assert "choose another --workdir" in told.err


def test_a_misspelt_field_in_a_config_file_is_named(tmp_path, capsys):
    (tmp_path / "c.py").write_text("from ragjax.config import *\nconfig = Compress(train=Train(stepz=3))")
    code, told = fails(capsys, "compress", tmp_path / "c.py")
    assert code == 2
    assert "Train has no field stepz; did you mean steps?" in told.err
