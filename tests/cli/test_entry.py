"""Commands as a person types them: help, and what is said of those that cannot be done."""

import errno
import subprocess
import sys

import pytest

from ragjax.cli import main
from ragjax.cli.verbs import VERBS


def test_without_a_verb_all_verbs_are_listed(capsys):
    main([])
    told = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"\n  {name} " in told
        assert verb.purpose in told


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(ended, verb):
    code, told = ended(verb, "--help")
    assert code == 0
    assert f"ragjax {verb}" in told.out


def test_help_and_config_errors_need_no_jax():
    script = (
        "import sys\nfrom ragjax.cli import main\nfrom ragjax.cli.verbs import VERBS\n"
        "for given in ([], *([verb, '--help'] for verb in VERBS), ['compress', 'none.py'], "
        "['compress', 'configs/quickstart.py', '--train.stepz', '3']):\n"
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
def test_bad_input_is_one_message_and_exit_code_2(ended, arguments, said):
    code, told = ended(*arguments)
    assert code == 2
    assert said in told.err
    assert told.out == ""
    assert "Traceback" not in told.err


def test_a_full_disk_is_told_with_what_to_do(monkeypatch, refused):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ragjax.report.write_report", write)
    assert "No space left on device: free some space" in refused("report", "/run")


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.3" if name == "ragjax" else "0")
    main(["--version"])
    assert capsys.readouterr().out == "ragjax 1.2.3\n"
