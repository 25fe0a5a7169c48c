import json

import numpy as np
import pytest

from ragjax.data.token_bytes import token_bytes
from ragjax.data.tokenizer import train_tokenizer
from ragjax.evaluation.text import count_text

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


SPACED = ["naïve  words\u00a0and more\n", "日本語 the quick fox 👩‍👩‍👧", "x", "", "the\n\nend "]


@pytest.fixture(scope="module")
def spaced(sentencepiece_tokenizer):
    """A tokenizer that puts <s> and a space before every text, documents, and the tokens between them."""
    ends = (sentencepiece_tokenizer.bos_token_id, sentencepiece_tokenizer.eos_token_id)
    ids = [[*sentencepiece_tokenizer.encode(text), ends[1]] for text in SPACED]
    assert all(document[0] == ends[0] for document in ids)
    return sentencepiece_tokenizer, np.concatenate(ids), ends


def test_sentencepiece_tokens_are_the_whole_text_without_the_space_put_first(spaced):
    tokenizer, tokens, ends = spaced
    counts = count_text(tokens, np.ones(len(tokens), bool), tokenizer, ends)
    assert counts.bytes == sum(len(text.encode()) for text in SPACED)
    assert counts.words == sum(len(text.split()) for text in SPACED)


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_sentencepiece_tokens_add_up(spaced, seed):
    tokenizer, tokens, ends = spaced
    part = np.random.default_rng(seed).random(len(tokens)) < 0.5
    counts = [np.array(count_text(tokens, chosen, tokenizer, ends)) for chosen in (part, ~part, part | True)]
    assert (counts[0] + counts[1] == counts[2]).all()


def test_sentencepiece_bytes_spell_what_the_tokenizer_decodes(sentencepiece_tokenizer):
    pieces = token_bytes(sentencepiece_tokenizer)
    ids = sentencepiece_tokenizer.encode("the lazy 日本 👩", add_special_tokens=False)
    assert b"".join(pieces[token] for token in ids).decode() == " the lazy 日本 👩"
    assert pieces[sentencepiece_tokenizer.convert_tokens_to_ids("<0x0A>")] == b"\n"
    assert pieces[sentencepiece_tokenizer.convert_tokens_to_ids("<0x00>")] == b"\0"


def test_ids_may_lie_beyond_the_number_of_tokens(byte_tokenizer):
    """As where a vocabulary has holes."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(byte_tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["hole"] = 400
    holed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    pieces = token_bytes(holed)
    assert (len(pieces), pieces[400], pieces[399]) == (401, b"hole", b"")
