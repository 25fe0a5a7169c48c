import numpy as np
import pytest

from ragjax.data.tokenizer import train_tokenizer
from ragjax.evaluation.text import count_text, token_bytes

DOCUMENTS = [
    "naïve  words\u00a0and more\n",
    "日本語 \u3000 text 👩‍👩‍👧 end",
    " \t leading",
    "a" * 50,
    "tail of it\u2028next line",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS * 3, 290)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return np.concatenate([[*tokenizer.encode(text), tokenizer.eos_token_id] for text in DOCUMENTS])


def test_all_tokens_are_the_whole_text(tokenizer, tokens):
    counts = count_text(tokens, np.ones(len(tokens), bool), tokenizer, (tokenizer.eos_token_id,))
    assert counts.bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert counts.words == sum(len(text.split()) for text in DOCUMENTS)


@pytest.mark.parametrize("seed", range(5))
def test_parts_add_up_to_the_whole(tokenizer, tokens, seed):
    part = np.random.default_rng(seed).random(len(tokens)) < 0.5

    def count(chosen):
        return np.array(count_text(tokens, chosen, tokenizer, (tokenizer.eos_token_id,)))

    assert (count(part) + count(~part) == count(part | True)).all()
    assert (count(part) < count(part | True)).all()


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_text_cut_anywhere_counts_the_bytes_that_are_there(tokenizer, tokens, cut):
    text = DOCUMENTS[1].encode()[:cut]
    ids = np.array([token_bytes(tokenizer).index(bytes([byte])) for byte in text])
    counts = count_text(ids, np.ones(len(ids), bool), tokenizer, ())
    assert counts == (len(text), len(text.decode("utf-8", "replace").split()))


def test_a_word_belongs_to_the_token_that_begins_it(byte_tokenizer):
    ids = np.array(byte_tokenizer.encode("ab cd"))
    chosen = [[True, True, False, False, True], [False, True, True, True, False]]
    assert [count_text(ids, np.array(c), byte_tokenizer, ()).words for c in chosen] == [1, 1]


def test_token_bytes_spell_what_the_tokenizer_decodes(tokenizer):
    pieces = token_bytes(tokenizer)
    assert len(pieces) == len(tokenizer)
    assert all(tokenizer.decode([i]) == piece.decode("utf-8", "replace") for i, piece in enumerate(pieces))


def test_bytes_of_other_tokenizers_are_not_known():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=words)) is None
