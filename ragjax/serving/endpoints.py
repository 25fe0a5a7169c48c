"""The server's paths."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from ragjax.serving.answers import Answer, Chat, Completion
from ragjax.serving.asks import Ask, chat_ask, completion_ask
from ragjax.serving.body import json_body
from ragjax.serving.guard import Guard
from ragjax.serving.metrics import CONTENT_TYPE
from ragjax.serving.page import PAGE, POLICY
from ragjax.serving.refusal import Refusal
from ragjax.serving.reply import Reply
from ragjax.serving.service import Served, Service

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def app(service: Service) -> Guard:
    """The ASGI application of a service, with its guard."""
    routes = FastAPI(title="ragjax", docs_url=None, redoc_url=None, openapi_url=None)

    @routes.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        if not refusal.counted:
            service.metrics.requests.add(outcome=refusal.outcome)
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @routes.exception_handler(HTTPException)
    async def no_such_path(_: Request, error: HTTPException) -> Response:
        refusal = Refusal(error.status_code, f"{error.detail}.")
        return JSONResponse(refusal.body(), refusal.status, error.headers)

    @routes.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        service.metrics.requests.add(outcome="error")
        refusal = Refusal(500, "The server has failed: see its log.", outcome="error")
        return JSONResponse(refusal.body(), refusal.status)

    @routes.get("/")
    async def page() -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    @routes.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": service.status}, 200 if service.status == "ok" else 503)

    @routes.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE)

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_described(served) for served in service.models.values()]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return _described(service.find(name))

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        ask = completion_ask(await json_body(request, service.limits.max_body))
        return await _answered(service, request, ask, service.find(ask.model), Completion)

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        values = await json_body(request, service.limits.max_body)
        name = values.get("model")
        served = service.find(name if isinstance(name, str) else None)
        ask = await asyncio.to_thread(chat_ask, values, served.render)
        return await _answered(service, request, ask, served, Chat)

    host = service.limits.host
    own = f"[{host}]" if ":" in host else host
    return Guard(
        routes, hosts=[*_LOOPBACK, own, *service.limits.allow_host], api_key=service.api_key,
        metrics=service.metrics,
    )  # fmt: skip


def _described(served: Served) -> dict[str, Any]:
    return {
        "id": served.name, "object": "model", "created": served.created, "owned_by": "ragjax",
        "parameters": served.model.parameters, "room": served.slots.room, "chat": served.chats,
        "draft": served.draft,
    }  # fmt: skip


async def _answered(
    service: Service, request: Request, ask: Ask, served: Served, kind: Callable[..., Answer]
) -> Response:
    """The response to an ask: whole, or as a stream."""
    prepared = await asyncio.to_thread(service.prepare, served, ask)
    answer = kind(
        served.name, served.token_text, served.token_bytes, log_probs=ask.options.log_probs is not None
    )
    reply = Reply(service, served, ask, prepared, answer)
    return reply.stream() if ask.stream else await reply.whole(request)
