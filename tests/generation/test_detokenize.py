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
