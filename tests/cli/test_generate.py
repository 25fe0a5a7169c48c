"""The verb `generate`."""

import json

import pytest

from ragjax.cli import main
from ragjax.generation import continuations, generate
from ragjax.interchange.folder import save


@pytest.fixture
def folder(tiny_byte_model, tmp_path):
    return str(save(tiny_byte_model, tmp_path / "model"))


def test_generate_continues_the_prompt(tiny_byte_model, folder, capsys):
    line = ["generate", folder, "--prompt", "ab", "--max-new-tokens", "5"]
    for options, flags in (
        ({}, []),
        (
            {"temperature": 2.0, "seed": 3, "top_k": 20},
            ["--temperature", "2", "--seed", "3", "--top-k", "20"],
        ),
    ):
        main(line + flags)
        expected = generate(tiny_byte_model, ["ab"], max_new_tokens=5, **options)
        assert capsys.readouterr().out == f"ab{expected[0]}\n"


def test_several_prompts_come_from_the_line_and_from_files(tiny_byte_model, folder, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('"two\\nlines"\n\n"x"\n')
    line = ["generate", folder, "--prompt", "ab", "--prompt", "c", "--max-new-tokens", "5"]
    main([*line, "--prompts-file", str(tmp_path / "prompts.jsonl")])
    prompts = ["ab", "c", "two\nlines", "x"]
    texts = generate(tiny_byte_model, prompts, max_new_tokens=5)
    assert capsys.readouterr().out == "\n\n".join(map("".join, zip(prompts, texts, strict=True))) + "\n"


def test_json_tells_all_that_is_known(tiny_byte_model, folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("ab\nc\n")
    main(
        ["generate", folder, "--prompts-file", str(tmp_path / "prompts.txt"), "--json", "--log-probs", "2",
         "--max-new-tokens", "5"]
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)["continuations"]
    expected = continuations(tiny_byte_model, ["ab", "c"], max_new_tokens=5, log_probs=2)
    for prompt, one, found in zip(["ab", "c"], expected, told, strict=True):
        assert found["prompt"] == prompt
        assert (found["text"], found["ended"], found["tokens"]) == (one.text, one.ended, one.tokens.tolist())
        assert found["log_probs"] == pytest.approx(one.log_probs.tolist())
        assert [[int(token) for token in best] for best in found["alternatives"]] == list(
            map(list, one.alternatives)
        )
        assert "score" not in found


def test_what_cannot_be_continued_is_told(folder, tmp_path, refused):
    assert "--prompts-file FILE" in refused("generate", folder)
    assert "cannot be read" in refused("generate", folder, "--prompts-file", tmp_path / "none.txt")
    (tmp_path / "bad.jsonl").write_text('"a"\n{"b": 1}\n')
    assert "line 2 must be a JSON string" in refused(
        "generate", folder, "--prompts-file", tmp_path / "bad.jsonl"
    )
    assert "set temperature above 0" in refused("generate", folder, "--prompt", "a", "--top-p", "0.5")
