"""Who may ask: the name by which the server is called, and the token that is sent with it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragjax.serving.metrics import Metrics
from ragjax.serving.refusal import Refusal

_OPEN_PATHS = ("/", "/health")
"""What needs no token: the page, which asks for it, and the question whether the server lives."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:[0-9]+)?")
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """Refuses strangers before anything of their request is read, and sets the headers of all answers.

    A page elsewhere that has its name point here (DNS rebinding) calls the server by that name, and is
    refused. There are no CORS headers, so that other pages can read nothing.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], api_key: str | None, metrics: Metrics):
        """Stands before `app`.

        Args:
          app: what is guarded.
          hosts: names by which the server may be called, without ports.
          api_key: the token that must be sent; none: none.
          metrics: count who was refused.
        """
        self._app, self._hosts, self._metrics = app, {host.lower() for host in hosts}, metrics
        self._key = None if api_key is None else _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or lets `app` answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", _NOTHING)
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, sending)
            return
        self._metrics.requests.add(outcome=refusal.outcome)
        answer = JSONResponse(refusal.body(), refusal.status, refusal.headers())
        await answer(scope, receive, sending)

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        called = headers.get("host", "")
        if _name(called) not in self._hosts:
            return Refusal(
                421,
                f"This server is not called {called[:80]!r}: start it with --allow-host NAME for more names.",
            )
        origin = headers.get("origin")
        if origin is not None and _name(origin.partition("://")[2]) not in self._hosts:
            return Refusal(403, "Pages of other sites may not ask this server.")
        if self._key is None or path in _OPEN_PATHS:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Of digests, so that the time tells nothing, not even the length.
        if scheme.lower() == "bearer" and hmac.compare_digest(_digest(token.strip().encode()), self._key):
            return None
        return Refusal(
            401, "Send the server's key, as Authorization: Bearer KEY.",
            code="invalid_api_key", outcome="unauthorized",
        )  # fmt: skip


def _name(host: str) -> str | None:
    """A host without its port; none where it is no host."""
    found = _HOST.fullmatch(host)
    return found and found[1].lower()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
