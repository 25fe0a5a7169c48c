"""The verb `generate`."""

from ragjax.cli import main
from ragjax.generation import generate
from ragjax.interchange.folder import save


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
