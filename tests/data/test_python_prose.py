import subprocess
import sys
import sysconfig

import pytest

from ragjax.data import python_prose as prose
from ragjax.errors import InputError


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of our own."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(prose, "_distinct", prose._distinct.__wrapped__)
    return tmp_path


def _text(word: str) -> str:
    return " ".join(f"{word}{i}" for i in range(80))


def _fill(library, files: dict[str, str]) -> None:
    files = {"pydoc_data/topics.py": f"topics = {{'a': {_text('topic')!r}}}\n", **files}
    for name, content in files.items():
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_topics_then_long_docstrings_in_the_order_of_files_and_lines(library):
    module = f'''"""{_text("module")}"""
def short():
    """Too short."""
if True:
    class A:
        """{_text("kind")}"""
        async def f(self):
            """{_text("method")}"""
'''
    _fill(library, {"b.py": f'"""{_text("last")}"""', "a.py": module})
    assert list(prose.python_prose()) == [
        _text(name) for name in ("topic", "module", "kind", "method", "last")
    ]


def test_modules_are_not_run(library):
    _fill(library, {"a.py": f'"""{_text("a")}"""\nraise SystemExit("run")\n'})
    assert _text("a") in list(prose.python_prose())


def test_tests_and_installed_packages_are_left_out(library):
    hidden = {
        f"{folder}/a.py": f'"""{_text(folder[:4])}"""' for folder in ("test", "site-packages/x", "idlelib")
    }
    _fill(library, hidden)
    assert list(prose.python_prose()) == [_text("topic")]


def test_a_text_that_mostly_stood_before_is_left_out(library):
    again = _text("a") + " and a little more"
    _fill(library, {"a.py": f'"""{_text("a")}"""', "b.py": f'"""{again}"""', "c.py": f'"""{_text("c")}"""'})
    assert list(prose.python_prose()) == [_text("topic"), _text("a"), _text("c")]


def test_the_digest_follows_the_sources(library):
    _fill(library, {"a.py": "1"})
    before = prose.python_prose_digest()
    assert prose.python_prose_digest() == before
    _fill(library, {"a.py": "2"})
    assert prose.python_prose_digest() != before


def test_a_python_without_its_sources_is_told_so(library):
    with pytest.raises(InputError, match=r"pydoc_data/topics\.py"):
        list(prose.python_prose())


def test_another_process_reads_the_same_text():
    script = "from ragjax.data.python_prose import python_prose; print(ascii(list(python_prose())))"
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    texts = list(prose.python_prose())
    assert run.stdout.strip() == ascii(texts)
    assert len(texts) > 1000
