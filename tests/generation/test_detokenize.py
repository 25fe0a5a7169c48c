import pytest

from ragjax.generation.detokenize import text_pieces

TEXT = "naïve 日本語 👩‍👩‍👧 fin"


def test_characters_come_whole(byte_tokenizer):
    ids = byte_tokenizer.encode(TEXT)
    pieces = list(text_pieces(byte_tokenizer, ids))
    assert "".join(pieces) == TEXT
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert len(pieces) > 5


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_character_cut_off_at_the_end_is_left_out(byte_tokenizer, cut):
    ids = byte_tokenizer.encode("ab日本👩")
    found = "".join(text_pieces(byte_tokenizer, ids[:cut]))
    assert found == "ab日本👩"[: len(found)]
    whole = b"".join([b"a", b"b", *(bytes([b]) for b in "日本👩".encode())])[:cut].decode(errors="ignore")
    assert found == whole


def test_bytes_that_are_no_text_do_not_stop_the_stream(byte_tokenizer):
    ids = byte_tokenizer.encode("日")[:2] + byte_tokenizer.encode("ab")
    assert "".join(text_pieces(byte_tokenizer, ids)).endswith("ab")


def test_special_tokens_write_nothing(byte_tokenizer):
    ids = [*byte_tokenizer.encode("a"), byte_tokenizer.eos_token_id, *byte_tokenizer.encode("b")]
    assert "".join(text_pieces(byte_tokenizer, ids, prompt=byte_tokenizer.encode("before"))) == "ab"


@pytest.mark.parametrize("prompt", ["", "the fox", "日本語日本語", "👩👩👩x👩👩"])
def test_sentencepiece_pieces_are_the_text_that_follows_the_prompt(sentencepiece_tokenizer, prompt):
    """Also after a prompt that ends in tokens of single bytes, in whichever of them it is cut."""
    ids = sentencepiece_tokenizer.encode(prompt)
    rest = sentencepiece_tokenizer.encode(TEXT + " the end")[1:]
    pieces = list(text_pieces(sentencepiece_tokenizer, rest, prompt=ids))
    assert "".join(pieces) == ("" if prompt == "" else " ") + TEXT + " the end"
    assert len(pieces) > 5


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_sentencepiece_character_cut_off_at_the_end_is_left_out(sentencepiece_tokenizer, cut):
    ids = sentencepiece_tokenizer.encode("x日本👩", add_special_tokens=False)
    written = b" x" + "日本👩".encode()
    found = "".join(text_pieces(sentencepiece_tokenizer, ids[:cut], prompt=[1]))
    # The space comes alone, then x, then byte after byte.
    assert found == written[:cut].decode(errors="ignore")[1:]


@pytest.mark.parametrize("kind", ["byte_tokenizer", "sentencepiece_tokenizer"])
@pytest.mark.parametrize("cut", range(1, 4))
def test_a_prompt_that_ends_within_a_character_is_gone_on_from(kind, cut, request):
    """The text completes the character, and loses nothing behind it."""
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode("x日👩日z", add_special_tokens=False)
    begin = len(tokenizer.encode("x日", add_special_tokens=False)) + cut
    assert "".join(text_pieces(tokenizer, ids[begin:], prompt=ids[:begin])) == "👩日z"
