"""The verb `generate` with `--dataset`."""

from pathlib import Path

import pytest

from ragjax.cli import main
from ragjax.config import Mesh, Writing
from ragjax.training.loop import Interrupted


@pytest.fixture
def called(monkeypatch):
    calls = []
    monkeypatch.setattr("ragjax.writing.write_dataset", lambda *given, **named: calls.append((given, named)))
    return calls


def test_flags_are_what_is_asked(called):
    line = ["generate", "m", "--dataset", "d.jsonl", "--prompts", "jsonl:a#p,c", "--samples", "3"]
    main([*line, "--prompt-tokens", "None", "--temperature", "0.7", "--mesh.fsdp", "2"])
    asked = Writing(prompts="jsonl:a#p,c", samples=3, temperature=0.7)
    assert called == [(("m", Path("d.jsonl"), asked), {"devices": Mesh(fsdp=2)})]
    main(["generate", "m", "--dataset=d.jsonl", "--prompts", "text:a"])
    assert called[1][0][1] == Path("d.jsonl")


def test_help_needs_no_name_of_a_file(ended):
    code, told = ended("generate", "--dataset", "--help")
    assert code == 0
    assert "--max-new-tokens" in told.out
    code, told = ended("generate", "--help")
    assert "--dataset" in told.out


def test_what_cannot_work_is_refused_before_anything_is_loaded(refused, tmp_path):
    line = ["generate", "m", "--dataset", tmp_path / "d.jsonl", "--prompts", "jsonl:a"]
    assert "samples must be 1 at temperature 0" in refused(*line, "--samples", 2, "--temperature", 0)
    line[-1] = "nothing"
    assert "names no text source" in refused(*line)


def test_a_stop_is_told_with_the_command_that_goes_on(monkeypatch, ended):
    def write(*_, **__):
        raise Interrupted("Stopped after 3 of 9")

    monkeypatch.setattr("ragjax.writing.write_dataset", write)
    code, told = ended("generate", "m", "--dataset", "d.jsonl", "--prompts", "text:a")
    assert code == 75
    assert "Stopped after 3 of 9. Go on with: the same command" in told.err
    assert "ragjax generate m --dataset d.jsonl" in told.err
