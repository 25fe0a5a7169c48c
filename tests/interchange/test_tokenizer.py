import contextlib
import json
import os
import subprocess
import sys

import pytest

from ragjax.data.tokenizer import fingerprint, save_tokenizer
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


def merged(vocab_size, specials=()):
    """Bytes as byte-level BPE spells them, and some merges of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(specials),
        show_progress=False,
    )
    learner.train_from_iterator(["low lower lowest newer newest 123 don't " * 20], trainer)
    model = json.loads(learner.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def qwen2():
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(**merged(290))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def gpt_neox():
    from tokenizers import AddedToken
    from transformers import GPTNeoXTokenizer

    tokenizer = GPTNeoXTokenizer(**merged(290, ["<|endoftext|>", "<|padding|>"]))
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    return tokenizer


def llama3():
    """Byte-level, of no class of its own, and with a token before every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = merged(290, ["<|begin|>", "<|end|>"])
    backend = Tokenizer(models.BPE(**made, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=["<|begin|>", "$A"], special_tokens=[("<|begin|>", made["vocab"]["<|begin|>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")


def smollm2():
    """Llama's network with a tokenizer of GPT-2's class."""
    from transformers import GPT2Tokenizer

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return GPT2Tokenizer(
        **merged(290, specials), bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


TEXTS = [
    TEXT, " leading", "lowest 12345 don't   stop", "a<|im_end|>b", "x</s> y", "", "e\u0301 \ufb01",
    "\r\n\n  \t",
]  # fmt: skip
CHAT = [{"role": "user", "content": "low?"}, {"role": "assistant", "content": "lowest."}]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("llama", "sentencepiece"), ("llama", smollm2), ("llama", llama3), ("qwen2", qwen2),
        ("gpt_neox", gpt_neox),
    ],
)  # fmt: skip
def test_a_tokenizer_of_each_family_is_the_same_after_saving_twice(
    sentencepiece_tokenizer, tmp_path, model_type, kind
):
    from transformers import AutoTokenizer

    theirs = sentencepiece_tokenizer if kind == "sentencepiece" else kind()
    first, second = tmp_path / "theirs", tmp_path / "ours"
    theirs.save_pretrained(first)
    told = json.loads((first / "tokenizer_config.json").read_text())
    (first / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": TEMPLATE}))
    (first / "config.json").write_text(json.dumps({"model_type": model_type}))
    read = read_tokenizer(first, model_type)
    second.mkdir()
    save_tokenizer(read, second)
    (second / "config.json").write_text(json.dumps({"model_type": model_type}))
    again, opened = read_tokenizer(second, model_type), AutoTokenizer.from_pretrained(second)
    for text in TEXTS:
        assert theirs.encode(text) == read.encode(text) == again.encode(text) == opened.encode(text)
        ids = theirs.encode(text)
        assert theirs.decode(ids) == again.decode(ids) == opened.decode(ids)
    assert type(theirs) is type(read) is type(again) is type(opened)
    assert again.special_tokens_map == theirs.special_tokens_map
    assert again.get_vocab() == theirs.get_vocab()
    assert fingerprint(again) == fingerprint(read) == fingerprint(theirs)
    assert again.apply_chat_template(CHAT, tokenize=False) == (
        "<|im_start|>user\nlow?<|im_end|><|im_start|>assistant\nlowest.<|im_end|>"
    )


def test_reading_a_llamas_tokenizer_needs_no_torch(sentencepiece_tokenizer, tmp_path):
    sentencepiece_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from ragjax.interchange.tokenizer import read_tokenizer\n"
        "print(*read_tokenizer(Path(sys.argv[1]), 'llama').encode('the fox'))"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    ids = sentencepiece_tokenizer.encode("the fox")
    assert run.stdout.split() == [str(token) for token in ids], run.stderr


def test_a_vocabulary_may_be_padded_beyond_its_tokenizer(byte_tokenizer):
    """As Qwen2's: 151,936 rows for 151,665 tokens."""
    check_vocabulary(byte_tokenizer, 384)
