import json

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ragjax.errors import InputError
from ragjax.interchange.gguf.splits import SPLITS
from ragjax.interchange.gguf.tokenizer import read_gguf_tokenizer, write_gguf_tokenizer

ODD = [
    "", " ", "a", " a", "a ", "   ", "\n", "\n\n \n", "\r\n", "\t\tx", "Hello world", "  two  spaces  ",
    "it's IT'S don't", "1 12 123 1234 12345", "x1y22z333", "3.14, 1,000", "naïve café cafe\u0301", "漢字かな",
    "한국어", "🙂👩\u200d👩\u200d👧🇩🇪", "Привет", "العربية", "\u00a0\u2028\ufeff", "<tag> </tag>", "<|end|>",
    "a<|end|>b", " <|end|> ", "<keep>a<keep>", "(a);//\n", "\x00\x7f", "ﬁ½²Ⅷ", "...!!!???",
    "the theatre that they saw", "}\n\n\tdef f(x):\n        return x**2\n",
]  # fmt: skip
TEXT = [" ".join(ODD) * 2, "the theatre that they saw there then 123 4567 café's"] * 2


def byte_level(pre_tokenizer, normalizer=None, **options):
    """A tokenizer that was trained with a way of cutting words, with special and other added tokens."""
    made = Tokenizer(models.BPE(**options))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_tokens([AddedToken("<keep>", normalized=False)])
    return tokenizer


def splitting(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def digits_alone():
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: byte_level(digits_alone()),
    "llama-bpe": lambda: byte_level(splitting(LLAMA3), ignore_merges=True),
    "qwen2": lambda: byte_level(splitting(LLAMA3.replace("{1,3}", "")), normalizers.NFC()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_level_tokenizer_gives_the_same_ids_after_the_trip(kind):
    tokenizer = KINDS[kind]()
    size = len(tokenizer) + 5
    metadata = write_gguf_tokenizer(tokenizer, size)
    assert metadata["tokenizer.ggml.pre"] == kind
    assert len(metadata["tokenizer.ggml.tokens"]) == len(metadata["tokenizer.ggml.token_type"]) == size
    back = read_gguf_tokenizer(metadata)
    for text in ODD:
        ids = tokenizer.encode(text)
        assert back.encode(text) == ids, text
        assert back.decode(ids) == tokenizer.decode(ids)
    assert back.get_vocab() == tokenizer.get_vocab()
    assert (back.eos_token, back.pad_token, back.bos_token) == ("<|end|>", "<|pad|>", None)
    assert back.all_special_ids == tokenizer.all_special_ids
    assert back.decode(back.encode("<|end|>a<keep>"), skip_special_tokens=True) == "a<keep>"


def test_ways_of_cutting_words_are_those_of_the_models_named_after():
    def words(name, text):
        return [word for word, _ in SPLITS[name].pre_tokenizer().pre_tokenize_str(text)]

    cut = pre_tokenizers.Split(Regex(GPT2), behavior="isolated")
    for text in ODD:
        plain = [word for word, _ in cut.pre_tokenize_str(text)]
        spelled = [
            word for word, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text)
        ]
        assert len(words("gpt-2", text)) == len(plain), text
        assert "".join(words("gpt-2", text)) == "".join(spelled)
    assert words("smollm", "a 123") == ["a", "Ġ", "1", "2", "3"]
    assert words("llama-bpe", "it'S 12345?\n\n x") == ["it", "'S", "Ġ", "123", "45", "?ĊĊ", "Ġx"]
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    theirs = pre_tokenizers.Split(Regex(qwen2.PRETOKENIZE_REGEX), behavior="isolated")
    for text in ODD:
        assert len(words("qwen2", text)) == len(theirs.pre_tokenize_str(text)), text


@pytest.mark.parametrize(("kind", "whole"), [("llama-bpe", True), ("qwen2", False)])
def test_a_word_without_merges_is_a_token_only_where_merges_are_ignored(kind, whole):
    metadata = write_gguf_tokenizer(KINDS[kind](), 420)
    unused = metadata["tokenizer.ggml.token_type"].index(5)
    metadata["tokenizer.ggml.tokens"][unused] = "Zebra"
    metadata["tokenizer.ggml.token_type"][unused] = 1
    assert (read_gguf_tokenizer(metadata).encode("Zebra") == [unused]) == whole


@pytest.mark.parametrize(("begins", "ends"), [(False, False), (True, False), (False, True), (True, True)])
def test_tokens_around_a_text_survive(begins, ends):
    tokenizer = KINDS["llama-bpe"]()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    first, last = (["<|begin|>"] if begins else []), (["<|end|>"] if ends else [])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        special_tokens=[("<|begin|>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)],
    )
    metadata = write_gguf_tokenizer(tokenizer, len(tokenizer))
    assert metadata["tokenizer.ggml.add_bos_token"] == begins
    back = read_gguf_tokenizer(metadata)
    assert back.encode("a b") == tokenizer.encode("a b")
    assert len(back.encode("a b")) == len(back.encode("a b", add_special_tokens=False)) + begins + ends
    assert back.encode("a", "b")[begins : -1 if ends else None].count(tokenizer.eos_token_id) == ends
    # Where the file does not say, texts begin with it, as in llama.cpp.
    del metadata["tokenizer.ggml.add_bos_token"]
    assert read_gguf_tokenizer(metadata).encode("a")[0] == tokenizer.bos_token_id


def test_the_chat_template_survives():
    tokenizer = KINDS["gpt-2"]()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    back = read_gguf_tokenizer(write_gguf_tokenizer(tokenizer, len(tokenizer)))
    said = [{"role": "user", "content": "the café"}]
    assert back.apply_chat_template(said, tokenize=False) == "the café<|end|>"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A real SentencePiece model with bytes for what it has no tokens for."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text("the theatre that they saw there then the café's other\n" * 30)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), vocab_size=320, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def sentencepiece_metadata(pieces):
    """What llama.cpp's converter writes of a SentencePiece model."""
    ids = range(pieces.get_piece_size())
    kinds = [
        2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [pieces.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_a_sentencepiece_tokenizer_gives_the_ids_of_sentencepiece(pieces):
    metadata = sentencepiece_metadata(pieces)
    tokenizer = read_gguf_tokenizer(metadata)
    merged = 0
    for text in ODD[2:]:
        if "<" in text:
            continue
        expected = pieces.encode(text)
        merged += len(expected) < len(text)
        assert tokenizer.encode(text) == [1, *expected], text
        assert tokenizer.decode(expected) == pieces.decode(expected), text
    assert merged > 2
    assert tokenizer.encode("a</s>", add_special_tokens=False)[-1] == 2


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_gives_the_same_ids_after_the_trip(pieces, prefix):
    metadata = sentencepiece_metadata(pieces) | {
        "tokenizer.ggml.add_space_prefix": prefix, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    tokenizer = read_gguf_tokenizer(metadata)
    written = write_gguf_tokenizer(tokenizer, len(tokenizer))
    for key in ("tokens", "token_type", "add_space_prefix", "add_bos_token", "unknown_token_id"):
        assert written[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"]
    back = read_gguf_tokenizer(written)
    for text in ODD:
        assert back.encode(text) == tokenizer.encode(text), text
        assert back.decode(back.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert tokenizer.tokenize("the")[0].startswith("▁") == prefix


def test_the_tokenizer_transformers_has_for_llama_can_be_written(pieces):
    from transformers import LlamaTokenizer

    plain = read_gguf_tokenizer(sentencepiece_metadata(pieces))
    model = json.loads(plain.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=merges)
    back = read_gguf_tokenizer(write_gguf_tokenizer(tokenizer, len(tokenizer)))
    for text in ODD:
        # That one alone puts no space before a text that begins with one, or follows a special token.
        if text.strip(" ") == text != "" and "<" not in text:
            assert back.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "must be gpt2, llama or none, found 'bert'"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, "tokenizer.ggml.pre must be one of .*qwen2.*found 'kimi-k2'"),
        (
            {"tokenizer.ggml.tokens": ["a", "b", "a"], "tokenizer.ggml.token_type": [1, 1, 1]},
            r"tokens twice.*'a'",
        ),
        ({"tokenizer.ggml.token_type": [1]}, r"token_type must be a list of \d+ numbers"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens must be a list"),
        ({"tokenizer.ggml.merges": None}, "merges must be a list"),
        ({"tokenizer.ggml.merges": ["t h e"]}, "two tokens with a space between"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, "tokenizer is damaged"),
        ({"tokenizer.ggml.model": "llama"}, r"scores must be a list of \d+ numbers"),
    ],
)
def test_a_damaged_or_unknown_tokenizer_is_refused(word_tokenizer, change, message):
    metadata = write_gguf_tokenizer(word_tokenizer, len(word_tokenizer))
    with pytest.raises(InputError, match=message):
        read_gguf_tokenizer(metadata | change)


def refused():
    prefixed = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    lower = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase())
    taking = KINDS["gpt-2"]()
    taking.add_tokens([AddedToken("<mask>", lstrip=True)])
    whole = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ignore_merges=True)
    words = Tokenizer(models.WordLevel({"a": 0, "<|end|>": 1}, unk_token="a"))
    framed = KINDS["gpt-2"]()
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", framed.pad_token_id)]
    )
    return {
        "prefix": (prefixed, "cuts words otherwise"),
        "whole": (whole, "ignore_merges"),
        "lower": (lower, r"cannot say all(.|\n)*would become"),
        "strip": (taking, "no place in GGUF: <mask>"),
        "words": (PreTrainedTokenizerFast(tokenizer_object=words), "BPE tokenizers here, found WordLevel"),
        "framed": (framed, r"turns 'a' into \['<\|pad\|>', 'a'\]"),
    }


def test_what_gguf_cannot_say_of_a_tokenizer_is_refused():
    for tokenizer, message in refused().values():
        with pytest.raises(InputError, match=message):
            write_gguf_tokenizer(tokenizer, len(tokenizer))


def test_a_tokenizer_without_merges_is_refused(byte_tokenizer):
    with pytest.raises(InputError, match=r"no merges, which llama\.cpp refuses"):
        write_gguf_tokenizer(byte_tokenizer, 257)


def test_a_bpe_whose_merges_no_scores_order_is_refused(pieces):
    tokenizer = read_gguf_tokenizer(sentencepiece_metadata(pieces))
    changed = json.loads(tokenizer.backend_tokenizer.to_str())
    del changed["model"]["merges"][3:]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(changed)), bos_token="<s>", eos_token="</s>"
    )
    with pytest.raises(InputError, match="not those of a SentencePiece model"):
        write_gguf_tokenizer(made, len(made))
