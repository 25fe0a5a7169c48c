import os

import pytest

from ragjax.errors import InputError
from ragjax.interchange.atomic import atomic_file, atomic_folder, check_creatable


def entries(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_folder_appears_when_the_block_ends_and_not_before(tmp_path):
    with atomic_folder(tmp_path / "deep" / "model") as partial:
        (partial / "config.json").write_text("{}")
        assert not (tmp_path / "deep" / "model").exists()
    assert entries(tmp_path / "deep") == ["model"]
    assert entries(tmp_path / "deep" / "model") == ["config.json"]


def test_others_may_read_it_as_they_may_read_a_plain_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    with atomic_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(tmp_path, error):
    def write():
        with atomic_folder(tmp_path / "model") as partial:
            (partial / "config.json").write_text("{}")
            raise error

    with pytest.raises(error):
        write()
    assert entries(tmp_path) == []


def test_what_is_there_is_not_touched_unless_told_so(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    with pytest.raises(InputError, match="exists already"), atomic_folder(tmp_path / "model"):
        pytest.fail("the block must not run")
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert entries(tmp_path) == ["model"]


def test_a_model_is_replaced_whole(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json"):
        (tmp_path / "model" / name).write_text("old")
    with atomic_folder(tmp_path / "model", overwrite=True) as partial:
        (partial / "config.json").write_text("new")
    assert entries(tmp_path) == ["model"]
    assert entries(tmp_path / "model") == ["config.json"]


def test_the_old_model_stays_when_the_new_one_fails(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "model", overwrite=True):
        raise OSError("full")
    assert entries(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"


def test_the_old_model_returns_when_the_last_step_fails(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    rename = os.rename

    def fail_for_new(source, target):
        if str(source).endswith(".partial"):
            raise OSError("gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(OSError, match="gone"), atomic_folder(tmp_path / "model", overwrite=True):
        pass
    assert entries(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"


@pytest.mark.parametrize("held", [["config.json", "thesis.tex"], ["thesis.tex"], ["model.safetensors"]])
def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path, held):
    (tmp_path / "home").mkdir()
    for name in held:
        (tmp_path / "home" / name).write_text("dear")
    with pytest.raises(InputError, match=held[-1]), atomic_folder(tmp_path / "home", overwrite=True):
        pytest.fail("the block must not run")
    assert entries(tmp_path / "home") == sorted(held)


def test_an_empty_folder_counts_as_absent(tmp_path):
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as partial:
        (partial / "config.json").write_text("{}")
    assert entries(tmp_path / "model") == ["config.json"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    def write():
        with atomic_folder(tmp_path / "model"):
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "config.json").write_text("the other's")

    with pytest.raises(InputError, match="exists already"):
        write()
    assert entries(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "the other's"


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as partial:
        (partial / "config.json").write_text("{}")
    assert (tmp_path / "link").is_symlink()
    assert entries(tmp_path / "real") == ["config.json"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file"), atomic_folder(tmp_path / "file", overwrite=True):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match="cannot be written"), atomic_folder(tmp_path / "file" / "model"):
        pytest.fail("the block must not run")


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    with atomic_file(tmp_path / "deep" / "m.gguf") as partial:
        partial.write_text("new")
        assert not (tmp_path / "deep" / "m.gguf").exists()
    assert entries(tmp_path / "deep") == ["m.gguf"]
    assert (tmp_path / "deep" / "m.gguf").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_file_after_an_error(tmp_path, error):
    def write():
        with atomic_file(tmp_path / "m.gguf") as partial:
            partial.write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert entries(tmp_path) == []


def test_a_file_that_is_there_is_replaced_only_when_told_so(tmp_path):
    (tmp_path / "m.gguf").write_text("old")
    with pytest.raises(InputError, match="exists already"), atomic_file(tmp_path / "m.gguf"):
        pass
    with pytest.raises(InputError, match="this is a folder"), atomic_file(tmp_path, overwrite=True):
        pass
    assert (tmp_path / "m.gguf").read_text() == "old"
    with atomic_file(tmp_path / "m.gguf", overwrite=True) as partial:
        partial.write_text("new")
    assert (tmp_path / "m.gguf").read_text() == "new"


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path):
    def write():
        with atomic_file(tmp_path / "m.gguf") as partial:
            partial.write_text("new")
            (tmp_path / "m.gguf").write_text("another's")

    with pytest.raises(InputError, match="exists already"):
        write()
    assert entries(tmp_path) == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_text() == "another's"


def test_a_place_that_cannot_be_written_is_told_before_anything_is(tmp_path):
    check_creatable(tmp_path / "deep" / "model")
    assert entries(tmp_path) == []
    (tmp_path / "file").touch()
    for below in (tmp_path / "file" / "model", tmp_path / "file" / "deep" / "model"):
        with pytest.raises(InputError, match="model: cannot be written: Not a directory"):
            check_creatable(below)
    assert entries(tmp_path) == ["file"]
