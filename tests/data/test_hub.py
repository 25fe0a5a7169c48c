import json
import sys
import types

import pytest

from ragjax.data.hub import hub_digest
from ragjax.data.sources import documents, pairs
from ragjax.data.uri import parse_uri
from ragjax.errors import InputError


class _Rows(list):
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, rows, path):
        super().__init__(rows)
        self.column_names = list(rows[0])
        self.cache_files = [{"filename": str(path)}]
        path.write_text(json.dumps(rows))

    def select_columns(self, names):
        return [{name: row[name] for name in names} for row in self]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that holds owner/name with two splits; its calls are kept."""
    splits = {"train": [{"text": "one", "n": 1}, {"text": "", "n": 2}], "test": [{"text": "two", "n": None}]}
    splits["validation"] = [{"p": "one", "c": " two", "e": False}, {"p": "", "c": "b", "e": True}]
    calls = []

    def load_dataset(name, configuration, *, split):
        calls.append((name, configuration, split))
        if split not in splits:
            raise ValueError(f'Unknown split "{split}".\nmore')
        return _Rows(splits[split], tmp_path / split)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_every_row_is_a_document_and_blank_ones_are_left_out(hub):
    assert list(documents("hf:owner/name")) == ["one"]
    assert list(documents("hf:owner/name:raw/test#text")) == ["two"]
    assert hub == [("owner/name", None, "train"), ("owner/name", "raw", "test")]


def test_the_digest_follows_the_content(hub):
    assert hub_digest(parse_uri("hf:owner/name")) == hub_digest(parse_uri("hf:owner/name/train"))
    assert hub_digest(parse_uri("hf:owner/name")) != hub_digest(parse_uri("hf:owner/name/test"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf:name#body", "no field 'body', found 'text', 'n'"),
        ("hf:name/test#n", "must be a string, found NoneType in row 0"),
        ("hf:name/validation[:1]", r'found: Unknown split "validation\[:1\]".$'),
    ],
)
def test_what_is_not_there_is_named(hub, uri, message):
    with pytest.raises(InputError, match=message):
        list(documents(uri))


def test_without_datasets_the_way_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'ragjax\[hub\]'"):
        list(documents("hf:owner/name"))


def test_rows_are_pairs_where_several_fields_are_named(hub):
    assert list(pairs("hf:owner/name:raw/validation#p,c")) == [("one", " two", True), ("", "b", True)]
    assert [pair.ended for pair in pairs("hf:owner/name/validation#p,c,e")] == [False, True]
    with pytest.raises(InputError, match=r"'e' must be a string, found bool; field 'c' must .* in row 0"):
        list(pairs("hf:owner/name/validation#e,p,c"))
    with pytest.raises(InputError, match="no field 'q', 'r', found 'p', 'c', 'e'"):
        list(pairs("hf:owner/name/validation#q,r"))
