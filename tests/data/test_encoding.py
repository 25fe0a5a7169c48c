"""Pairs as tokens: what a user who generates from the prompt has, and what then follows."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from ragjax.data.encoding import encoded_pairs
from ragjax.data.records import Pair
from ragjax.data.tokenizer import encode_prompts


def _encoded(tokenizer, *pairs):
    (batch,) = encoded_pairs([Pair(*pair) for pair in pairs], tokenizer)
    return [(ids[:size], ids[size:]) for ids, size in zip(batch.documents, batch.prompts, strict=True)]


@pytest.fixture(scope="module")
def legacy(sentencepiece_tokenizer):
    """A Llama tokenizer as older ones are: a space is put before every text by its normalizer."""
    state = json.loads(sentencepiece_tokenizer.backend_tokenizer.to_str())
    made = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None}))
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    made.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("completion", [" jumps over", "jumps", "\n\nthe dog", "  日本"])
@pytest.mark.parametrize("prompt", ["the quick brown fox", "the fox ", "the", "fo"])
@pytest.mark.parametrize("kind", ["tokenizer", "byte_tokenizer", "sentencepiece_tokenizer", "legacy"])
def test_the_text_of_a_pair_is_prompt_and_completion_one_right_after_the_other(
    request, kind, prompt, completion
):
    tokenizer = request.getfixturevalue(kind)
    ((before, after),) = _encoded(tokenizer, (prompt, completion))
    assert before == encode_prompts(tokenizer, [prompt])[0]
    assert after[-1] == tokenizer.eos_token_id
    decoded = tokenizer.decode(
        [*before, *after], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert decoded == prompt + completion


def test_a_prompt_is_encoded_alone_and_with_its_special_tokens(byte_tokenizer):
    end = byte_tokenizer.eos_token_id
    ((before, after),) = _encoded(byte_tokenizer, ("a<|endoftext|>b", "<|endoftext|>"))
    assert before == byte_tokenizer.encode("a<|endoftext|>b")
    assert before.count(end) == 1
    assert after.count(end) == 1
    assert byte_tokenizer.decode(after[:-1]) == "<|endoftext|>"


def test_a_merge_never_reaches_over_the_seam():
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<end>": 3}
    made = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    assert tokenizer.encode("aab") == [0, 2]
    assert _encoded(tokenizer, ("a", "ab"), ("aa", "b")) == [([0], [2, 3]), ([0, 0], [1, 3])]


def test_an_empty_prompt_is_the_token_that_begins_a_text(byte_tokenizer, sentencepiece_tokenizer):
    assert _encoded(byte_tokenizer, ("", "x"))[0][0] == [byte_tokenizer.eos_token_id]
    assert _encoded(sentencepiece_tokenizer, ("", "x"))[0][0] == [sentencepiece_tokenizer.bos_token_id]


def test_a_completion_that_did_not_end_has_no_end_of_text(byte_tokenizer):
    whole, open_ = _encoded(byte_tokenizer, ("a", "bc", True), ("a", "bc", False))
    assert whole[1] == [*open_[1], byte_tokenizer.eos_token_id]
    assert whole[0] == open_[0]


def test_bytes_and_words_are_those_of_the_whole_text(byte_tokenizer):
    (batch,) = encoded_pairs([Pair("é 1", "2 3"), Pair("", "x")], byte_tokenizer)
    assert (batch.utf8_bytes, batch.words) == (len("é 12 3x".encode()), 4)
    assert np.sum(batch.prompts) == 5
