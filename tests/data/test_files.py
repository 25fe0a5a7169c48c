import pytest

from ragjax.data.files import files_digest, hash_files, jsonl_records, text_records
from ragjax.data.uri import parse_uri
from ragjax.errors import InputError


def _text(pattern) -> list[str]:
    return [text for (text,) in text_records(parse_uri(f"text:{pattern}"))]


def _lines(path, field="text") -> list[str]:
    return [text for (text,) in jsonl_records(parse_uri(f"jsonl:{path}#{field}"))]


def test_each_file_is_a_document_in_the_order_of_names(tmp_path):
    for name in ("b.txt", "a.txt", "in/c.txt", "no.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(f"{name}\r\né\n".encode())
    assert _text(tmp_path / "*.txt") == ["a.txt\r\né\n", "b.txt\r\né\n"]
    assert _text(tmp_path / "**/*.txt") == ["a.txt\r\né\n", "b.txt\r\né\n", "in/c.txt\r\né\n"]


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert _text(tmp_path / "a[1].txt") == ["one"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert _text(tmp_path / "a.txt") == ["one"]


def test_no_match_is_an_error_that_knows_folders(tmp_path):
    with pytest.raises(InputError, match="no file matches"):
        _text(tmp_path / "*.txt")
    with pytest.raises(InputError, match=r"it is a folder: write text:.*/\*\*/\*"):
        _text(tmp_path)


def test_all_unreadable_files_are_named_at_once(tmp_path):
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(InputError) as raised:
        _text(tmp_path / "*.txt")
    message = str(raised.value)
    assert f"{tmp_path}/empty.txt: holds no text" in message
    assert f"{tmp_path}/blank.txt: holds no text" in message
    assert f"{tmp_path}/latin.txt: not UTF-8, found byte 0xe9 at offset 3" in message
    assert f"{tmp_path}/marked.txt: not UTF-8, found byte 0xff at offset 5" in message
    assert "good.txt" not in message


def test_reading_stops_when_nothing_can_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n" * 10_000)
    with pytest.raises(InputError, match="and 80 more"):
        _lines(tmp_path / "a.jsonl")


def test_each_line_is_a_document_and_empty_ones_are_left_out(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"body": "two\\n"}\n\n  \n{"body": "three 文", "n": 1}')
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n')
    assert _lines(tmp_path / "*.jsonl", "body") == ["one", "two\n", "three 文"]


def test_all_broken_lines_are_named_at_once(tmp_path):
    good = b'{"text": "one"}\n'
    lines = [
        good,
        b'{"text": "cut\n',
        b"[1]\n",
        b'{"body": "x"}\n',
        b'{"text": 3}\n',
        b'{"text": "\\ud800"}\n',
        b'{"text": "\xff"}\n',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError) as raised:
        _lines(tmp_path / "*.jsonl")
    message = str(raised.value)
    assert f"{path}:1" not in message
    assert f"{path}:2: not JSON" in message
    assert f"{path}:3: expected a JSON object, found list" in message
    assert f"{path}:4: no field 'text', found 'body'" in message
    assert f"{path}:5: field 'text' must be a string, found int" in message
    assert f"{path}:6: field 'text' holds half a surrogate pair" in message
    offset = sum(map(len, lines[:6])) + len(b'{"text": "')
    assert f"{path}:7: not UTF-8, found byte 0xff at offset {offset}" in message
    assert "empty.jsonl: holds no lines" in message


def test_the_digest_is_of_content_and_of_where_files_end(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    source = parse_uri(f"text:{tmp_path}/*.txt")
    first = files_digest(source)
    (tmp_path / "a.txt").rename(tmp_path / "aa.txt")
    assert files_digest(source) == first
    (tmp_path / "aa.txt").write_text("onet")
    (tmp_path / "b.txt").write_text("wo")
    assert files_digest(source) != first
    assert hash_files([]) != first


def _pairs(path, fields="p,c"):
    return list(jsonl_records(parse_uri(f"jsonl:{path}#{fields}")))


def test_each_line_is_a_pair_where_several_fields_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"p": "one", "c": " two", "e": false}\n{"c": "b", "p": "", "e": true}\n')
    assert _pairs(path) == [("one", " two", True), ("", "b", True)]
    assert _pairs(path, "p,c,e") == [("one", " two", False), ("", "b", True)]


def test_all_lines_that_are_no_pairs_are_named_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"p": "one", "c": "two", "e": true}',
        '{"p": "one", "e": true}',
        '{"p": "one", "c": " \\n", "e": true}',
        '{"p": 1, "c": "two", "e": 1}',
        '{"c": "\\ud800"}',
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as raised:
        _pairs(path, "p,c,e")
    message = str(raised.value)
    assert f"{path}:1" not in message
    assert f"{path}:2: no field 'c', found 'p', 'e'" in message
    assert f"{path}:3: field 'c' is blank" in message
    assert f"{path}:4: field 'p' must be a string, found int" in message
    assert f"{path}:4: field 'e' must be true or false, found int" in message
    assert f"{path}:5: no field 'p', found 'c'" in message
    assert f"{path}:5: no field 'e', found 'c'" in message
