from pathlib import Path

from ragjax.cache_folder import cache_folder


def test_a_chosen_folder_goes_before_the_environment_and_that_before_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("RAGJAX_CACHE", "~/mine")
    assert cache_folder("~/chosen") == Path("/home/someone/chosen")
    assert cache_folder() == Path("/home/someone/mine")
    monkeypatch.setenv("RAGJAX_CACHE", "")
    assert cache_folder() == Path("/home/someone/.cache/ragjax")
