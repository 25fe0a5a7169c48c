"""A cache is the same files however many hosts write it and however often they are stopped."""

import dataclasses

import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.teacher_cache import Stopped, TeacherCache, read_manifest
from ragjax.teacher_cache.manifest import NAME, WINDOWS, shard_name

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def made(making, kept):
    return making(kept("likeliest", 5, dtype="float16", temperature=1.0))


@pytest.fixture
def whole(made, tmp_path, contents):
    made.write(tmp_path / "whole")
    return contents(tmp_path / "whole")


def test_the_files_are_those_of_the_manifest(made, tmp_path):
    told = []
    manifest = made.write(tmp_path / "c", tell=lambda *progress: told.append(progress))
    assert {file.name for file in (tmp_path / "c").iterdir()} == {NAME, *manifest.files}
    assert set(manifest.files) == {WINDOWS, *(shard_name(shard) for shard in range(5))}
    assert [len(manifest.rows(shard)) for shard in range(5)] == [8, 8, 8, 8, 4]
    assert told == [(8, 36), (16, 36), (24, 36), (32, 36), (36, 36)]
    assert read_manifest(tmp_path / "c") == manifest


def test_the_storage_that_is_stated_is_that_on_disk(made, tmp_path, monkeypatch):
    monkeypatch.undo()
    manifest = made.write(tmp_path / "c")
    assert manifest.shards == 1
    stated = manifest.held.bytes_per_token * manifest.held.tokens
    found = (tmp_path / "c" / shard_name(0)).stat().st_size
    assert 0 < found - stated < 200
    assert (tmp_path / "c" / WINDOWS).stat().st_size - 8 * 36 < 200


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_what_was_stopped_goes_on_to_the_same_files(made, whole, tmp_path, contents, stop, stop_after):
    with pytest.raises(Stopped):
        made.write(tmp_path / "c", stop=stop_after(stop).requested)
    assert read_manifest(tmp_path / "c").files is None
    with pytest.raises(InputError, match="is not finished"):
        TeacherCache(tmp_path / "c")
    # As after a kill in the middle of a file.
    (tmp_path / "c" / f".{shard_name(4)}.0123.partial").write_bytes(b"half")
    asked = []

    def ask(windows):
        asked.append(windows)
        return made.ask(windows)

    made._replace(ask=ask).write(tmp_path / "c")
    assert len(asked) == 5 - stop
    assert contents(tmp_path / "c") == whole


def test_several_hosts_write_the_files_of_one(made, whole, tmp_path, contents):
    assert made.write(tmp_path / "c", host=1, hosts=2).files is None
    assert set(contents(tmp_path / "c")) == {NAME, WINDOWS, shard_name(1), shard_name(3)}
    made.write(tmp_path / "c", host=0, hosts=2)
    assert contents(tmp_path / "c") == whole


def test_what_was_damaged_or_lost_is_made_anew(made, whole, tmp_path, contents):
    folder = tmp_path / "c"
    made.write(folder)
    (folder / shard_name(1)).unlink()
    data = bytearray(whole[shard_name(2)])
    data[-1] ^= 1
    (folder / shard_name(2)).write_bytes(data)
    (folder / shard_name(3)).write_bytes(whole[shard_name(3)][:-5])
    (folder / WINDOWS).write_bytes(b"")
    told = []
    made.write(folder, tell=lambda *progress: told.append(progress))
    assert told == [(20, 36), (28, 36), (36, 36)]
    assert contents(folder) == whole


def test_a_shorter_training_keeps_the_windows_it_visits(making, kept, tmp_path):
    made = making(kept("likeliest", 5, dtype="float16", temperature=1.0), steps=2)
    made.write(tmp_path)
    assert read_manifest(tmp_path).held.sequences == 16
    cache = TeacherCache(tmp_path)
    np.testing.assert_array_equal(cache.windows, made.windows)
    assert len(set(made.windows)) == 16
    expected = made.ask(made.windows[::-1][:8])
    np.testing.assert_array_equal(cache(made.windows[::-1][:8]).ids, expected.ids)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "f" * 64}, r"text: \w{12} there, ffffffffffff now"),
        ({"teacher": "f" * 64}, r"teacher: \w{12} there, ffffffffffff now"),
        ({"sequences": 7}, "sequences: 36 there, 7 now"),
        ({"kept": {"count": 6}}, "kept.count: 5 there, 6 now"),
    ],
)
def test_a_folder_of_another_cache_is_left_alone(made, whole, tmp_path, contents, change, said):
    if "kept" in change:
        change = {"kept": dataclasses.replace(made.held.kept, **change["kept"])}
    other = made._replace(held=dataclasses.replace(made.held, **change))
    with pytest.raises(InputError, match=f"a cache of something else:\n.*{said}"):
        other.write(tmp_path / "whole")
    assert contents(tmp_path / "whole") == whole


def test_a_folder_of_something_else_is_left_alone(made, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InputError, match="no cache of a teacher"):
            made.write(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
