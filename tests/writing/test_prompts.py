"""What a model is asked to go on from."""

import pytest

from ragjax.config import Writing
from ragjax.data.sources import documents
from ragjax.errors import InputError
from ragjax.writing.prompts import read_prompts


@pytest.fixture
def lines(tmp_path):
    """A source of texts of several lengths."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in ("abc", "abcdefgh", "ééé", "x" * 50)))
    return f"jsonl:{path}"


def _read(tokenizer, uri, positions=64, **fields):
    return read_prompts(Writing(prompts=uri, **{"max_new_tokens": 20, **fields}), tokenizer, positions)


def test_pairs_have_prompts_of_their_own(byte_tokenizer, pairs_file):
    uri = pairs_file([("one", " two"), ("", "three"), ("one", " more")])
    assert _read(byte_tokenizer, uri) == (["one", "", "one"], 0)
    assert _read(byte_tokenizer, uri, max_prompts=2).texts == ["one", ""]


def test_texts_are_prompts_where_they_fit(byte_tokenizer, lines):
    assert _read(byte_tokenizer, lines) == (["abc", "abcdefgh", "ééé"], 1)
    assert _read(byte_tokenizer, lines, positions=70).left_out == 0


def test_texts_longer_than_their_beginnings_begin_prompts_in_whole_characters(byte_tokenizer, lines):
    assert _read(byte_tokenizer, lines, prompt_tokens=5) == (["abcde", "éé", "xxxxx"], 0)
    assert _read(byte_tokenizer, lines, prompt_tokens=1).texts == ["a", "a", "x"]


def test_what_is_put_before_every_text_is_no_part_of_a_prompts_text(sentencepiece_tokenizer, lines):
    (text, *_) = _read(sentencepiece_tokenizer, lines, prompt_tokens=5).texts
    assert "abcdefgh".startswith(text)


def test_a_side_of_the_source_can_be_asked_for(byte_tokenizer, pairs_file):
    uri = pairs_file([(f"{i}", "x") for i in range(100)])
    sides = {side: _read(byte_tokenizer, uri, split=side).texts for side in ("train", "validation", None)}
    assert sorted(sides["train"] + sides["validation"]) == sorted(sides[None])
    assert len(sides[None]) == 100
    first = next(documents("builtin:python", "train"))
    prose = _read(byte_tokenizer, "builtin:python", prompt_tokens=8, max_prompts=1).texts
    assert first.startswith(prose[0])


def test_no_prompt_that_fits_is_one_error(byte_tokenizer, lines):
    with pytest.raises(InputError, match=r"of at most 2 tokens, .* found 4 that are longer\. Lower"):
        _read(byte_tokenizer, lines, max_new_tokens=62)
    with pytest.raises(InputError, match=r"of more than 60 tokens .* found none\. "):
        _read(byte_tokenizer, lines, prompt_tokens=60)


def test_prompts_of_pairs_are_not_cut(byte_tokenizer, pairs_file):
    with pytest.raises(InputError, match="leave prompt_tokens out"):
        _read(byte_tokenizer, pairs_file([("a", "b")]), prompt_tokens=3)
