"""A file that grows, goes on where it stopped, and is never mixed with another."""

import dataclasses
import json
import os
from contextlib import closing

import pytest

from ragjax.errors import InputError
from ragjax.writing.dataset import Dataset, Written

SETTINGS = {"model": "abc", "seed": 0}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "in" / "d.jsonl"


def _begun(out, settings=SETTINGS):
    return closing(Dataset(out, settings, {"model": "there"}))


def test_a_file_is_there_once_it_is_whole(out):
    with _begun(out) as dataset:
        dataset.append("one\n", Written(rows=1))
        dataset.append("", Written(rows=2, blank=1))
        assert sorted(os.listdir(out.parent)) == ["d.about.json", "d.jsonl.unfinished"]
        dataset.finish()
    assert sorted(os.listdir(out.parent)) == ["d.about.json", "d.jsonl"]
    assert out.read_text() == "one\n"
    with _begun(out) as again:
        assert again.finished
        assert again.written == Written(rows=2, blank=1, bytes=4)
    about = json.loads((out.parent / "d.about.json").read_text())
    assert about["origin"] == {"model": "there"}


@pytest.mark.parametrize("torn", ["", "{half a li", "more\nand more\n"])
def test_what_a_stop_left_behind_the_lines_that_count_is_cut_off(out, torn):
    with _begun(out) as dataset:
        dataset.append("one\n", Written(rows=1))
    with (out.parent / "d.jsonl.unfinished").open("a") as file:
        file.write(torn)
    with _begun(out) as dataset:
        assert dataset.written == Written(rows=1, bytes=4)
        dataset.append("two\n", Written(rows=2))
        dataset.finish()
    assert out.read_text() == "one\ntwo\n"


def test_a_stop_before_the_first_line_leaves_a_beginning(out):
    out.parent.mkdir()
    (out.parent / "d.jsonl.unfinished").touch()
    with _begun(out) as dataset:
        assert dataset.written == Written()
        dataset.append("", Written(rows=3, blank=3))
    with _begun(out) as dataset:
        assert dataset.written == Written(rows=3, blank=3)
        dataset.append("one\n", Written(rows=4, blank=3))
    (out.parent / "d.jsonl.unfinished").write_text("")
    with _begun(out) as dataset:
        assert dataset.written == Written()


@pytest.mark.parametrize("whole", [False, True])
def test_other_settings_are_refused_by_name_and_change_nothing(out, whole):
    with _begun(out) as dataset:
        dataset.append("one\n", Written(rows=1))
        if whole:
            dataset.finish()
    before = {file.name: file.read_bytes() for file in out.parent.iterdir()}
    with pytest.raises(InputError) as raised:
        Dataset(out, {"model": "abd", "seed": 1}, {})
    assert "model: abc there, abd now" in str(raised.value)
    assert "seed: 0 there, 1 now" in str(raised.value)
    assert {file.name: file.read_bytes() for file in out.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.unfinished"])
def test_a_file_of_someone_else_is_never_written_to(out, name):
    out.parent.mkdir()
    (out.parent / name).write_text("mine\n")
    with pytest.raises(InputError, match=f"{name} exists, and not by"):
        Dataset(out, SETTINGS, {})
    assert os.listdir(out.parent) == [name]


@pytest.mark.parametrize("about", ["[]", "{", "{}", '{"settings": 1, "written": {}}'])
def test_an_about_file_of_something_else_is_refused(out, about):
    out.parent.mkdir()
    (out.parent / "d.about.json").write_text(about)
    with pytest.raises(InputError, match=r"d\.about\.json"):
        Dataset(out, SETTINGS, {})


@pytest.mark.parametrize(("whole", "text"), [(False, "on"), (True, "on"), (True, ""), (True, "one\ntwo\n")])
def test_a_file_that_was_changed_is_refused(out, whole, text):
    with _begun(out) as dataset:
        dataset.append("one\n", Written(rows=1))
        if whole:
            dataset.finish()
    changed = out if whole else out.parent / "d.jsonl.unfinished"
    changed.write_text(text)
    with pytest.raises(InputError, match=f"was changed .* 4 bytes were, {len(text)} are"):
        Dataset(out, SETTINGS, {})
    changed.unlink()
    with _begun(out) as anew:
        assert anew.written == Written()


def test_two_processes_do_not_write_the_same_file(out):
    with _begun(out), pytest.raises(InputError, match="is being written by another process"):
        Dataset(out, SETTINGS, {})


def test_names_that_cannot_be_written_are_refused(out):
    with pytest.raises(InputError, match=r"ends in \.jsonl"):
        Dataset(out.with_suffix(".txt"), SETTINGS, {})
    out.mkdir(parents=True)
    with pytest.raises(InputError, match="is a folder"):
        Dataset(out, SETTINGS, {})
    (out.parent / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        Dataset(out.parent / "file" / "d.jsonl", SETTINGS, {})


def test_every_field_of_written_is_a_number():
    assert all(value == 0 for value in dataclasses.asdict(Written()).values())
