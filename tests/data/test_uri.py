import pytest

from ragjax.data.uri import Source, check_alike, parse_uri
from ragjax.errors import InputError


@pytest.mark.parametrize(
    ("uri", "scheme", "location", "split", "field"),
    [
        ("builtin:python", "builtin", "python", None, "text"),
        ("builtin:python/train", "builtin", "python", "train", "text"),
        ("text:a/**/*.txt", "text", "a/**/*.txt", None, "text"),
        ("text:a#b.txt", "text", "a#b.txt", None, "text"),
        ("jsonl:a/train.jsonl", "jsonl", "a/train.jsonl", None, "text"),
        ("jsonl:a#1.jsonl#body", "jsonl", "a#1.jsonl", None, "body"),
        ("tfds:glue/sst2:1.0.0/train[:10%]#sentence", "tfds", "glue/sst2:1.0.0", "train[:10%]", "sentence"),
        ("tfds:lm1b", "tfds", "lm1b", None, "text"),
        ("hf:owner/name", "hf", "owner/name", None, "text"),
        ("hf:name/validation", "hf", "name", "validation", "text"),
        ("hf:owner/name:config/train[:5]#body", "hf", "owner/name:config", "train[:5]", "body"),
        ("hf:owner/training-set", "hf", "owner/training-set", None, "text"),
    ],
)
def test_a_uri_is_taken_apart(uri, scheme, location, split, field):
    assert parse_uri(uri) == Source(uri, scheme, location, split, (field,))


@pytest.mark.parametrize("fields", [("p", "c"), ("p", "c", "ended")])
@pytest.mark.parametrize("uri", ["jsonl:a.jsonl", "tfds:name/train", "hf:owner/name"])
def test_several_fields_make_a_source_of_pairs(uri, fields):
    source = parse_uri(f"{uri}#{','.join(fields)}")
    assert source.fields == fields
    assert source.of_pairs
    assert not parse_uri(f"{uri}#p").of_pairs


@pytest.mark.parametrize("fields", ["p,", ",c", "p,p", "p,c,ended,more", ","])
def test_fields_that_make_no_pair_are_refused(fields):
    with pytest.raises(InputError, match=f"prompt,completion,ended, after '#', found '{fields}'"):
        parse_uri(f"jsonl:a.jsonl#{fields}")


@pytest.mark.parametrize(
    ("train", "validation"),
    [("jsonl:a#p,c", "text:b"), ("text:b", "jsonl:a#p,c"), ("jsonl:a#p,c", "jsonl:a")],
)
def test_pairs_and_texts_are_not_mixed(train, validation):
    with pytest.raises(InputError, match=r"jsonl:a#p,c is a source of pairs, .* one of texts"):
        check_alike(train, validation)
    check_alike(train, train)
    check_alike(validation, None)


def test_the_nearest_scheme_is_suggested():
    with pytest.raises(InputError, match=r"Did you mean jsonl:a\.txt#b\?"):
        parse_uri("json:a.txt#b")


def test_a_bare_file_name_is_told_its_scheme(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch()
    with pytest.raises(InputError, match=f"write jsonl:{path}"):
        parse_uri(str(path))


@pytest.mark.parametrize("uri", ["", "nothing", "wrong:thing"])
def test_every_form_is_listed_where_a_uri_is_none(uri):
    with pytest.raises(InputError, match=r"builtin:python, text:GLOB, jsonl:PATH#field, tfds:.*, hf:"):
        parse_uri(uri)


@pytest.mark.parametrize(
    "uri", ["text:", "jsonl:#text", "jsonl:a.jsonl#", "builtin:", "tfds:name/", "tfds:/train"]
)
def test_an_incomplete_uri_is_refused(uri):
    with pytest.raises(InputError, match="expected"):
        parse_uri(uri)
