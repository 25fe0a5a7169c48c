import contextlib
import json

import pytest

from ragjax.errors import InputError
from ragjax.interchange.tokenizer import check_vocabulary, load_tokenizer, read_tokenizer

TEXT = "The naïve café — 日本 🙂\n\tend"


@pytest.fixture
def saved(byte_tokenizer, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 257}')
    byte_tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("model_type", ["gpt2", "gpt3"])
def test_a_tokenizer_is_read_as_it_was_written(saved, byte_tokenizer, model_type):
    (saved / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = read_tokenizer(saved, model_type)
    assert tokenizer.encode(TEXT) == byte_tokenizer.encode(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("model_type", ["gpt2", "gpt3"])
def test_gpt2s_own_two_files_are_enough(tmp_path, model_type):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["low lower lowest newer newest " * 20], vocab_size=280)
    trained.save_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = read_tokenizer(tmp_path, model_type)
    assert tokenizer.encode("lowest newest") == trained.encode("lowest newest").ids


def test_no_files_are_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "generation_config.json").write_text("{}")
    assert read_tokenizer(tmp_path, "gpt2") is None


def test_a_vocabulary_that_is_gone_is_noticed(saved):
    (saved / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.*found tokenizer_config.json|cannot be read"):
        read_tokenizer(saved, "gpt2")


def test_the_silent_tokenizer_of_one_token_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "special_tokens_map.json").write_text("{}")
    with pytest.raises(InputError, match="knows 1 token"):
        read_tokenizer(tmp_path, "gpt2")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe"])
def test_damaged_files_are_named(saved, damage):
    (saved / "tokenizer.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"tokenizer.json"):
        read_tokenizer(saved, "gpt2")


def test_code_beside_a_tokenizer_is_not_run(saved, tmp_path):
    trap = tmp_path / "ran"
    (saved / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass T: pass\n")
    told = json.loads((saved / "tokenizer_config.json").read_text())
    told.update(tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    (saved / "tokenizer_config.json").write_text(json.dumps(told))
    with contextlib.suppress(InputError):
        read_tokenizer(saved, "gpt2")
    assert not trap.exists()


def test_ids_the_model_does_not_know_are_refused_with_both_numbers(byte_tokenizer):
    check_vocabulary(byte_tokenizer, 257)
    with pytest.raises(InputError, match=r"257 tokens with ids up to 256.*256 tokens"):
        check_vocabulary(byte_tokenizer, 256)


def test_a_tokenizer_of_another_model_is_refused_with_both_numbers(byte_tokenizer):
    check_vocabulary(byte_tokenizer, 514)
    with pytest.raises(InputError, match=r"257 tokens.*515"):
        check_vocabulary(byte_tokenizer, 515)


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "gpt3"}', '{"kind": "Compress"}'])
def test_a_folder_of_nothing_but_a_tokenizer_is_read(saved, byte_tokenizer, config):
    (saved / "config.json").unlink()
    if config is not None:
        (saved / "config.json").write_text(config)
    assert load_tokenizer(str(saved)).encode(TEXT) == byte_tokenizer.encode(TEXT)


def test_a_model_without_a_tokenizer_has_none_to_load(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
