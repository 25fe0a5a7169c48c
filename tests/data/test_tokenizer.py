import json
import os
import random
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ragjax.data.tokenizer import fingerprint, opening, save_tokenizer, train_tokenizer
from ragjax.errors import InputError


def _any_text(seed: int) -> str:
    """Random code points of all planes, control characters and white space among them."""
    draw = random.Random(seed)
    planes = [(0, 128), (0, 0xD7FF), (0xE000, 0x10FFFF), (9, 32)]
    return "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(200))


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, folder)
    return folder


def test_it_is_a_gpt2_tokenizer_of_the_size_asked_for(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == 300
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 299
    assert {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id} == {299}


def test_it_merges_what_is_frequent(tokenizer, sentences):
    text = "".join(sentences)
    assert len(tokenizer(text)["input_ids"]) < 0.7 * len(text.encode())


@pytest.mark.parametrize("seed", range(5))
def test_any_unicode_survives_encoding_and_reading_back(tokenizer, saved, seed):
    text = _any_text(seed)
    again = AutoTokenizer.from_pretrained(saved)
    ids = tokenizer(text)["input_ids"]
    assert again(text)["input_ids"] == ids
    assert again.decode(ids) == tokenizer.decode(ids) == text


def test_what_is_read_back_is_the_same_tokenizer(tokenizer, saved):
    again = AutoTokenizer.from_pretrained(saved)
    assert type(again) is type(tokenizer)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert fingerprint(again) == fingerprint(tokenizer)


def test_vocab_and_merges_alone_are_enough(tokenizer, saved, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert json.loads((tmp_path / "vocab.json").read_text()) == tokenizer.get_vocab()
    text = _any_text(9)
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_equal_texts_give_equal_tokenizers_in_any_process(tokenizer, sentences):
    assert fingerprint(train_tokenizer(iter(sentences), 300)) == fingerprint(tokenizer)
    script = (
        "import json, sys; from ragjax.data.tokenizer import *; "
        "print(fingerprint(train_tokenizer(json.load(sys.stdin), 300)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        input=json.dumps(sentences),
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == fingerprint(tokenizer), run.stderr


def test_the_fingerprint_follows_what_is_encoded_alone(tokenizer, sentences):
    other = train_tokenizer(sentences, 299)
    assert fingerprint(other) != fingerprint(tokenizer)
    used = train_tokenizer(sentences, 300)
    used.pad_token = used.eos_token
    used(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert fingerprint(used) == fingerprint(tokenizer)


def test_a_tokenizer_can_be_no_smaller_than_its_bytes():
    assert len(train_tokenizer(["abab"], 257)) == 257
    with pytest.raises(InputError, match=r"at least 257.*found 256"):
        train_tokenizer(["abab"], 256)


def test_texts_without_pairs_left_give_fewer_tokens():
    assert len(train_tokenizer(["ab ab"], 1000)) < 265


def test_no_text_is_an_error():
    with pytest.raises(InputError, match="found none"):
        train_tokenizer([], 300)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"fast tokenizer.*found Slow"):
        fingerprint(Slow())


def test_what_a_tokenizer_puts_before_every_text_is_found(tokenizer, sentencepiece_tokenizer):
    from tokenizers import Tokenizer, processors

    assert opening(tokenizer) == []
    assert opening(sentencepiece_tokenizer) == [sentencepiece_tokenizer.bos_token_id] == [1]
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single=["x", "y", "$A", "z"], special_tokens=[(name, backend.token_to_id(name)) for name in "xyz"]
    )
    framed = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert opening(framed) == [backend.token_to_id("x"), backend.token_to_id("y")]


def test_files_of_a_byte_level_bpe_are_not_written_for_others(sentencepiece_tokenizer, tmp_path):
    save_tokenizer(sentencepiece_tokenizer, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
