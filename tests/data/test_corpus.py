import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from ragjax.data import corpus as module
from ragjax.data import encoding
from ragjax.data.corpus import open_corpora, open_corpus
from ragjax.data.encoding import document_ends
from ragjax.data.sources import documents
from ragjax.data.tokenizer import opening, train_tokenizer
from ragjax.errors import InputError


@pytest.fixture
def tokenized(monkeypatch):
    """How often a source was tokenized."""
    calls = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda *args: (calls.append(args), write(*args)))
    return calls


def _entries(cache) -> list[str]:
    return sorted(os.listdir(cache / "corpora"))


def test_documents_come_back_each_closed_by_the_end_of_text(
    jsonl, sentences, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 100)
    corpus = open_corpus(jsonl(), None, tokenizer, cache=tmp_path / "cache")
    assert corpus.documents == len(sentences)
    for number, text in enumerate(sentences):
        ids = corpus.document(number)
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == text
    assert np.count_nonzero(corpus.tokens == tokenizer.eos_token_id) == len(sentences)
    assert len(corpus) == sum(len(tokenizer(text)["input_ids"]) + 1 for text in sentences)
    assert corpus.utf8_bytes == sum(len(text.encode()) for text in sentences)
    assert corpus.words == sum(len(text.split()) for text in sentences)


def test_tokens_are_mapped_in_the_smallest_type(jsonl, tokenizer, tmp_path, monkeypatch):
    corpus = open_corpus(jsonl(), None, tokenizer, cache=tmp_path / "cache")
    assert isinstance(corpus.tokens, np.memmap)
    assert (corpus.tokens.dtype, corpus.starts.dtype) == (np.uint16, np.int64)
    assert not corpus.tokens.flags.writeable
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 70_000)
    wide = open_corpus(jsonl(), "train", tokenizer, cache=tmp_path / "cache")
    assert wide.tokens.dtype == np.uint32


def test_a_text_that_spells_a_special_token_stays_text(jsonl, tokenizer, tmp_path):
    text = "before <|endoftext|> after"
    corpus = open_corpus(jsonl([text]), None, tokenizer, cache=tmp_path / "cache")
    assert np.flatnonzero(corpus.tokens == tokenizer.eos_token_id).tolist() == [len(corpus) - 1]
    assert tokenizer.decode(corpus.tokens[:-1]) == text


def test_long_documents_and_a_used_tokenizer_are_encoded_whole(jsonl, sentences, tmp_path):
    used = train_tokenizer(sentences, 300)
    used.model_max_length = 8
    used.pad_token = used.eos_token
    used(["a", "a b c"], padding=True, truncation=True)
    text = " ".join(sentences)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = open_corpus(jsonl([text, "short"]), None, used, cache=tmp_path / "cache")
    assert used.decode(corpus.document(0)[:-1]) == text
    assert used.decode(corpus.document(1)[:-1]) == "short"


def test_a_source_is_tokenized_once(jsonl, tokenizer, tmp_path, tokenized):
    first = open_corpus(jsonl(), None, tokenizer, cache=tmp_path / "cache")
    again = open_corpus(jsonl(name="moved.jsonl"), None, tokenizer, cache=tmp_path / "cache")
    assert len(tokenized) == 1
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.starts, again.starts)
    assert (first.utf8_bytes, first.words) == (again.utf8_bytes, again.words)


def test_content_split_and_tokenizer_each_make_another_entry(
    jsonl, sentences, tokenizer, tmp_path, tokenized
):
    cache, other = tmp_path / "cache", train_tokenizer(sentences, 299)
    open_corpus(jsonl(), None, tokenizer, cache=cache)
    open_corpus(jsonl(), "train", tokenizer, cache=cache)
    open_corpus(jsonl(), "validation", tokenizer, cache=cache)
    open_corpus(jsonl(), None, other, cache=cache)
    open_corpus(jsonl(sentences[1:]), None, tokenizer, cache=cache)
    assert len(tokenized) == 5
    assert len(_entries(cache)) == 5


def test_the_cache_is_where_the_environment_says(jsonl, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "elsewhere"))
    open_corpus(jsonl(), None, tokenizer)
    assert len(_entries(tmp_path / "elsewhere")) == 1
    monkeypatch.delenv("RAGJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    open_corpus(jsonl(), None, tokenizer)
    assert len(_entries(tmp_path / ".cache/ragjax")) == 1


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokens.npy", lambda content: content[:-1]),
        ("starts.npy", lambda content: content + b"0"),
        ("corpus.json", lambda content: content[:10]),
        ("corpus.json", lambda content: b"{}"),
        ("tokens.npy", None),
    ],
)
def test_a_damaged_entry_is_made_again(jsonl, tokenizer, tmp_path, tokenized, name, damage):
    cache = tmp_path / "cache"
    tokens = np.array(open_corpus(jsonl(), None, tokenizer, cache=cache).tokens)
    file = cache / "corpora" / _entries(cache)[0] / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    again = open_corpus(jsonl(), None, tokenizer, cache=cache)
    np.testing.assert_array_equal(again.tokens, tokens)
    open_corpus(jsonl(), None, tokenizer, cache=cache)
    assert len(tokenized) == 2
    assert len(_entries(cache)) == 1


def test_a_source_that_cannot_be_read_leaves_nothing_behind(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": 2}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2"):
        open_corpus(f"jsonl:{tmp_path}/a.jsonl", None, tokenizer, cache=tmp_path / "cache")
    assert _entries(tmp_path / "cache") == []


_OPEN = """
import sys, time
from pathlib import Path
import numpy as np
from tokenizers import Tokenizer
from ragjax.data.corpus import open_corpus

class Fast:
    is_fast, eos_token_id = True, 299
    backend_tokenizer = Tokenizer.from_file(sys.argv[2])
    def __len__(self):
        return 300
    def encode(self, text, add_special_tokens=True):
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

print("ready", flush=True)
sys.stdin.readline()
print(np.sum(open_corpus(sys.argv[1], None, Fast(), cache=sys.argv[3]).tokens, dtype=np.int64))
"""


def test_processes_may_write_the_same_entry_at_once(jsonl, sentences, tokenizer, tmp_path):
    cache, saved = tmp_path / "cache", tmp_path / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(saved))
    command = [sys.executable, "-c", _OPEN, jsonl(sentences * 50), str(saved), str(cache)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    writers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(3)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 3
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    sums = [int(writer.communicate()[0]) for writer in writers]
    assert sums[0] == sums[1] == sums[2] > 0
    assert len(_entries(cache)) == 1


def test_the_one_who_comes_second_uses_the_entry_of_the_first(jsonl, tokenizer, tmp_path, monkeypatch):
    cache, write = tmp_path / "cache", module._write

    def overtaken(*args):
        monkeypatch.setattr(module, "_write", write)
        open_corpus(jsonl(), None, tokenizer, cache=cache)
        write(*args)

    monkeypatch.setattr(module, "_write", overtaken)
    corpus = open_corpus(jsonl(), None, tokenizer, cache=cache)
    np.testing.assert_array_equal(corpus.tokens, open_corpus(jsonl(), None, tokenizer, cache=cache).tokens)
    assert len(_entries(cache)) == 1


def test_progress_is_told(jsonl, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 500)
    told = []
    corpus = open_corpus(
        jsonl(), None, tokenizer, cache=tmp_path, progress=lambda *counts: told.append(counts)
    )
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == (corpus.documents, len(corpus))


def test_without_a_validation_source_documents_are_held_out(jsonl, tokenizer, tmp_path):
    train, held_out = open_corpora(jsonl(), None, tokenizer, cache=tmp_path / "cache")
    assert train.documents == len(list(documents(jsonl(), "train")))
    assert held_out.documents == len(list(documents(jsonl(), "validation")))


def test_with_a_validation_source_all_documents_are_trained_on(jsonl, sentences, tokenizer, tmp_path):
    train, held_out = open_corpora(jsonl(), jsonl(["a", "b"], "v.jsonl"), tokenizer, cache=tmp_path / "cache")
    assert (train.documents, held_out.documents) == (len(sentences), 2)


def test_a_tokenizer_without_an_end_is_refused(jsonl, sentences, tmp_path):
    endless = train_tokenizer(sentences, 300)
    endless.eos_token = None
    with pytest.raises(InputError, match="eos_token"):
        open_corpus(jsonl(), None, endless, cache=tmp_path)


def test_a_cache_that_is_no_folder_is_an_error(jsonl, tokenizer, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"Set data\.cache or RAGJAX_CACHE"):
        open_corpus(jsonl(), None, tokenizer, cache=tmp_path / "cache")


def test_an_entry_holds_numbers_and_json_alone(jsonl, tokenizer, tmp_path):
    open_corpus(jsonl(), None, tokenizer, cache=tmp_path / "cache")
    (entry,) = (tmp_path / "cache/corpora").iterdir()
    assert sorted(os.listdir(entry)) == ["corpus.json", "starts.npy", "tokens.npy"]
    json.loads((entry / "corpus.json").read_text())
    for name in ("starts.npy", "tokens.npy"):
        assert np.load(entry / name, allow_pickle=False).ndim == 1


def test_documents_begin_with_what_the_tokenizer_puts_before_every_text(
    jsonl, sentences, sentencepiece_tokenizer, tmp_path
):
    tokenizer = sentencepiece_tokenizer
    corpus = open_corpus(jsonl(), None, tokenizer, cache=tmp_path / "cache")
    for number, text in enumerate(sentences):
        first, *ids, last = corpus.document(number)
        assert (first, last) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.decode(ids) == text
    assert document_ends(tokenizer) == ([1], [2])


def test_a_token_that_opens_and_closes_texts_stands_once_between_them(byte_tokenizer, tmp_path, jsonl):
    """As OPT's </s>, or GPT-2's where it is asked to begin texts."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(byte_tokenizer.backend_tokenizer.to_str())
    end = "<|endoftext|>"
    backend.post_processor = processors.TemplateProcessing(single=[end, "$A"], special_tokens=[(end, 256)])
    both = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)
    assert opening(both) == [256]
    corpus = open_corpus(jsonl(["ab", "c"]), None, both, cache=tmp_path / "cache")
    plain = open_corpus(jsonl(["ab", "c"]), None, byte_tokenizer, cache=tmp_path / "cache")
    np.testing.assert_array_equal(corpus.tokens, plain.tokens)
    assert len(_entries(tmp_path / "cache")) == 2


def test_a_corpus_of_pairs_knows_where_completions_start(
    pairs_file, tokenizer, tmp_path, monkeypatch, tokenized
):
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 100)
    rows = [(f"The question {i}?", f" An answer {i}." * (1 + i % 3)) for i in range(20)]
    uri = pairs_file(rows)
    corpus = open_corpus(uri, None, tokenizer, cache=tmp_path / "cache")
    again = open_corpus(uri, None, tokenizer, cache=tmp_path / "cache")
    assert len(tokenized) == 1
    for number, (prompt, completion) in enumerate(rows):
        size = corpus.completions[number] - corpus.starts[number]
        assert corpus.ends[number] - corpus.starts[number] == len(corpus.document(number))
        assert tokenizer.decode(corpus.document(number)[:size]) == prompt
        assert tokenizer.decode(corpus.document(number)[size:]) == f"{completion}<|endoftext|>"
    np.testing.assert_array_equal(again.completions, corpus.completions)
    assert (corpus.utf8_bytes, corpus.words) == (
        sum(len(p + c) for p, c in rows),
        sum(3 + len(c.split()) for _, c in rows),
    )


def test_pairs_texts_and_what_ended_are_entries_of_their_own(tmp_path, tokenizer, tokenized):
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    path.write_text("".join(f'{{"p": "one {i}", "c": "two", "e": false}}\n' for i in range(9)))
    for fields in ("p", "p,c", "c,p", "p,c,e"):
        open_corpus(f"jsonl:{path}#{fields}", None, tokenizer, cache=cache)
    assert len(_entries(cache)) == len(tokenized) == 4
    with pytest.raises(InputError, match="of one kind"):
        open_corpora(f"jsonl:{path}#p,c", f"jsonl:{path}#p", tokenizer, cache=cache)


@pytest.mark.parametrize("damage", ["completions.npy", "corpus.json"])
def test_a_damaged_entry_of_pairs_is_made_again(pairs_file, tokenizer, tmp_path, tokenized, damage):
    uri, cache = pairs_file([("one", "two"), ("three", "four")]), tmp_path / "cache"
    before = np.array(open_corpus(uri, None, tokenizer, cache=cache).completions)
    (cache / "corpora" / _entries(cache)[0] / damage).unlink()
    np.testing.assert_array_equal(open_corpus(uri, None, tokenizer, cache=cache).completions, before)
    assert len(tokenized) == 2
