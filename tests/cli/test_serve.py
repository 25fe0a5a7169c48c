"""The verb `serve`: what cannot be served is told at once. Servers that run: tests/serving/test_server.py."""

import socket

import pytest

from ragjax.cli.serve import _checked_key
from ragjax.config import Serve


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--slots", "0", "--queue", "0"], ["slots must be at least 1", "queue must be at least 1"]),
        (["--port", "70000", "--timeout", "0"], ["port must lie", "timeout must be above 0"]),
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


def test_a_port_that_is_taken_is_told(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1 port {port}" in refused("serve", "none", "--port", port)
