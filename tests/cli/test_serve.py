"""The verb `serve`: what cannot be served is told at once. Servers that run: tests/serving/test_server.py."""

import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ragjax.cli.serve import _checked_key, _drafts
from ragjax.config import Serve
from ragjax.data import train_tokenizer
from ragjax.interchange.folder import save
from ragjax.model import Model
from ragjax.models.decoder import init_params


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--slots", "0", "--queue", "0"], ["slots must be at least 1", "queue must be at least 1"]),
        (["--port", "70000", "--timeout", "0"], ["port must lie", "timeout must be above 0"]),
        (["--drain", "-1", "--allow-host", "box.lan:80"], ["drain must be 0", "found 'box.lan:80'"]),
        (["--allow-host", "http://box.lan", "::1", "box.lan"], ["found 'http://box.lan'", "found '::1'"]),
        (["--host", "0.0.0.0"], ["lets others in"]),
        (["--host", "0.0.0.0", "--api-key-file", "none.txt"], ["none.txt cannot be read", "lets others in"]),
    ],
)
def test_what_cannot_be_served_is_told_at_once(refused, flags, told, monkeypatch):
    monkeypatch.delenv("RAGJAX_API_KEY", raising=False)
    message = refused("serve", "no-such-model", *flags)
    assert all(each in message for each in told)


@pytest.mark.parametrize("key", ["short", "short           ", "not ascii äöüäöüäöü"])
def test_a_weak_key_is_refused(refused, monkeypatch, key):
    monkeypatch.setenv("RAGJAX_API_KEY", key)
    assert "at least 16 printable" in refused("serve", "no-such-model")


def test_spaces_around_a_key_are_not_of_it(monkeypatch):
    monkeypatch.setenv("RAGJAX_API_KEY", " 0123456789abcdef\n")
    assert _checked_key(Serve()) == "0123456789abcdef"


def test_a_name_by_which_clients_may_call_is_taken_as_it_is():
    assert Serve(allow_host=("box.lan", "[fd00::1]", "localhost")).allow_host[1] == "[fd00::1]"


def test_a_draft_of_another_vocabulary_is_refused_before_anything_is_compiled(
    refused, tiny_byte_model, tmp_path
):
    tokenizer = train_tokenizer(["some more text to learn from"], vocab_size=270)
    config = replace(tiny_byte_model.config, vocab_size=len(tokenizer))
    other = Model(config, init_params(config, seed=0), tokenizer)
    paths = [save(model, tmp_path / name) for model, name in ((tiny_byte_model, "large"), (other, "small"))]
    message = refused("serve", paths[0], "--draft", paths[1], "--port", "0")
    assert f"the model has 257 tokens, the draft {len(tokenizer)}" in message
    assert "--no-speculate serves them beside each other" in message


@pytest.mark.parametrize(
    ("draft", "speculate", "told"),
    [
        ("b", True, "b proposes up to 4 tokens at once, a decides"),
        (None, True, "none: in onnxruntime a model writes alone"),
        (None, False, "none: --no-speculate"),
    ],
)
def test_whether_it_speculates_is_told_at_the_start(draft, speculate, told):
    models = {"a": SimpleNamespace(name="a", draft=draft), "b": SimpleNamespace(name="b", draft=None)}
    command = SimpleNamespace(draft_tokens=4, speculate=speculate)
    assert _drafts(SimpleNamespace(models=models), command) == told


def test_a_port_that_is_taken_is_told(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1 port {port}" in refused("serve", "none", "--port", port)
