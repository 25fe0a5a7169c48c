"""The verb `tokenizer`."""

from ragjax.cli import main


def test_a_tokenizer_is_trained_from_a_source(tmp_path, capsys, refused):
    (tmp_path / "a.txt").write_text("one two three " * 50)
    main(["tokenizer", f"text:{tmp_path}/*.txt", str(tmp_path / "out"), "--vocab-size", "260"])
    assert f"{tmp_path / 'out'}: 260 tokens" in capsys.readouterr().out
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert "exists already" in refused("tokenizer", f"text:{tmp_path}/*.txt", tmp_path / "out")
