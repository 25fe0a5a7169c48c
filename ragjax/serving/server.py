"""A service on a socket, until it is asked to stop and has finished what it was doing."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from ragjax.errors import InputError
from ragjax.serving.endpoints import app
from ragjax.serving.service import Service

_MOST_CONNECTIONS = 512
_log = logging.getLogger("ragjax.serving")


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the address, and does not listen yet.

    Raises:
      InputError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose another --port, 0 for any."
        ) from error
    return found


def url_of(bound: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(service: Service, bound: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Answers until SIGTERM or SIGINT; then refuses new requests, and returns when the last one is answered.

    A second signal cuts off what still runs, and so do the limits' seconds of draining: a client that does
    not read what it asked for would hold up the end for ever.

    Args:
      service: models with their slots.
      bound: from `bind`.
      ready: called when the first request can come.
    """
    config = uvicorn.Config(
        app(service), http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, limit_concurrency=_MOST_CONNECTIONS, timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    try:
        _Draining(config, service, ready).run(sockets=[bound])
    finally:
        service.stop()


class _Draining(uvicorn.Server):
    """Keeps its socket while it drains, so that clients are told to go elsewhere."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]):
        super().__init__(config)
        self._service, self._ready = service, ready
        self._until = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._service.draining:
            self._until = min(self._until, time.monotonic() + self._service.limits.drain)
            if not self._service.active:
                self.should_exit = True
            elif time.monotonic() >= self._until:
                _log.warning("cut off: %d requests were not answered in time", self._service.active)
                self.should_exit = self.force_exit = True
        return await super().on_tick(counter)
