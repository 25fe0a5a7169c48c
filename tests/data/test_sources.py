import pytest

from ragjax.data.sources import digest, documents, pairs, training_split
from ragjax.data.uri import parse_uri
from ragjax.errors import InputError


def test_all_documents_are_read_where_no_split_is_asked_for(jsonl, sentences):
    assert list(documents(jsonl())) == sentences


def test_the_sides_of_a_split_part_the_documents(jsonl):
    texts = [f"text number {i}" for i in range(2000)]
    train, held_out = (list(documents(jsonl(texts), side)) for side in ("train", "validation"))
    assert sorted(train + held_out) == sorted(texts)
    assert 0.07 < len(held_out) / len(texts) < 0.13


def test_a_document_keeps_its_side_when_others_come(jsonl):
    texts = [f"text number {i}" for i in range(400)]
    few = set(documents(jsonl(texts[:200], "few.jsonl"), "validation"))
    many = set(documents(jsonl([*reversed(texts)], "many.jsonl"), "validation"))
    assert few
    assert few == many & set(texts[:200])


def test_texts_that_differ_in_white_space_stay_together(jsonl):
    texts = [f"text{gap}number {i}" for i in range(100) for gap in (" ", "  ", "\n")]
    train = {" ".join(text.split()) for text in documents(jsonl(texts), "train")}
    held_out = {" ".join(text.split()) for text in documents(jsonl(texts), "validation")}
    assert train
    assert held_out
    assert not train & held_out


@pytest.mark.parametrize("count", range(3, 9))
def test_few_documents_are_split_too(jsonl, count):
    for first in range(0, 40, count):
        texts = [f"text {i}" for i in range(first, first + count)]
        repeated = jsonl(texts + texts)
        train, held_out = (list(documents(repeated, side)) for side in ("train", "validation"))
        assert set(train) | set(held_out) == set(texts)
        assert not set(train) & set(held_out)
        assert len(train) + len(held_out) == 2 * count


@pytest.mark.parametrize("side", ["train", "validation"])
def test_a_single_document_is_not_split(tmp_path, side):
    (tmp_path / "a.txt").write_text("The only one.")
    uri = f"text:{tmp_path}/a.txt"
    assert list(documents(uri)) == ["The only one."]
    with pytest.raises(InputError, match=r"all of them .1. fall on one side\. Set data\.validation"):
        list(documents(uri, side))


@pytest.mark.parametrize("side", [None, "train", "validation"])
def test_a_source_of_blank_texts_is_empty(jsonl, side):
    with pytest.raises(InputError, match="holds no text"):
        list(documents(jsonl([" ", ""]), side))


def test_builtin_prose_is_split_for_good():
    train, held_out = (list(documents("builtin:python", side)) for side in ("train", "validation"))
    assert list(documents("builtin:python")) == held_out
    assert list(documents("builtin:python/train")) == train
    assert list(documents("builtin:python/validation", "validation")) == held_out
    assert not set(train) & set(held_out)
    characters = sum(map(len, held_out)) / sum(map(len, train + held_out))
    assert 0.05 < characters < 0.15


@pytest.mark.parametrize(
    ("uri", "split"),
    [("builtin:perl", None), ("builtin:python/test", None), ("builtin:python/train", "validation")],
)
def test_other_builtin_sources_are_refused(uri, split):
    with pytest.raises(InputError, match="builtin:python"):
        documents(uri, split)


@pytest.mark.parametrize(
    ("uri", "hold_out", "split"),
    [
        ("text:a", True, "train"),
        ("text:a", False, None),
        ("builtin:python", True, "train"),
        ("builtin:python", False, "train"),
        ("builtin:python/train", False, None),
    ],
)
def test_training_never_sees_what_builtin_prose_holds_out(uri, hold_out, split):
    assert training_split(uri, hold_out=hold_out) == split


def test_the_digest_follows_the_content_alone(jsonl, sentences):
    here, there = (digest(parse_uri(jsonl(name=name))) for name in ("a.jsonl", "b.jsonl"))
    assert here == there
    assert digest(parse_uri(jsonl(sentences[1:]))) != here


def test_pairs_go_by_their_prompts(pairs_file):
    rows = [(f"Question {i // 3}?", f" Answer {i}.") for i in range(300)]
    uri = pairs_file(rows)
    assert [pair[:2] for pair in pairs(uri)] == rows
    train, held_out = (list(pairs(uri, side)) for side in ("train", "validation"))
    assert sorted(pair[:2] for pair in train + held_out) == sorted(rows)
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held_out}
    assert {pair.prompt for pair in held_out} == set(
        documents(uri.replace("prompt,completion", "prompt"), "validation")
    )


def test_as_documents_pairs_are_texts(pairs_file):
    uri = pairs_file([("one", " two"), ("", "three")])
    assert list(documents(uri)) == ["one two", "three"]


def test_a_source_of_texts_has_no_pairs(jsonl):
    with pytest.raises(InputError, match=r"expected prompts and completions, found a text: name both fields"):
        pairs(jsonl())
