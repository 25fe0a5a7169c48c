"""A request under way, from its place in the queue to the last word of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ragjax.generation.prompts import tokenizer_of
from ragjax.serving.answers import Answer, Written, failure_event, figures_of
from ragjax.serving.asks import Ask
from ragjax.serving.job import Dropped, Event, Job
from ragjax.serving.refusal import Outcome, Refusal
from ragjax.serving.service import Prepared, Served, Service

_log = logging.getLogger("ragjax.serving")


class Reply:
    """Answers one ask, once: `whole` or as a `stream`. A client that leaves frees its slots."""

    def __init__(self, service: Service, served: Served, ask: Ask, prepared: Prepared, answer: Answer):
        self._service, self._served, self._ask = service, served, ask
        self._prepared, self._answer = prepared, answer
        self._begun = time.monotonic()
        self._texts = [Written(prompt) for prompt in self._echoed() for _ in range(ask.choices)]
        self._outcome: Outcome = "cancelled"

    async def whole(self, request: Request) -> Response:
        """Waits for all texts.

        Raises:
          Refusal: there is no room for them, or they are not finished in time.
        """
        with ExitStack() as stack:
            jobs, events = self._begin(stack)
            watch = asyncio.create_task(self._watch(request, jobs))
            stack.callback(watch.cancel)
            async for event in self._until_the_end(events):
                if isinstance(event, Dropped):
                    raise self._refusal(event)
            self._outcome = "completed"
            # Elsewhere, since log-probs of many texts take a while to tell.
            return await asyncio.to_thread(self._response)

    def stream(self) -> Response:
        """Server-sent events.

        Raises:
          Refusal: there is no room for the texts.
        """
        with ExitStack() as stack:
            _, events = self._begin(stack)
            return _EventStream(self._told(events), stack.pop_all().close)

    def _begin(self, stack: ExitStack) -> tuple[Sequence[Job], asyncio.Queue[Event]]:
        """Lets the texts be written, until `stack` is closed."""
        stack.enter_context(self._service.answering())
        jobs, events = self._service.begin(self._served, self._ask, self._prepared)
        stack.callback(self._note)
        stack.callback(self._served.scheduler.cancel, jobs)
        return jobs, events

    async def _watch(self, request: Request, jobs: Sequence[Job]) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._served.scheduler.cancel(jobs)

    async def _until_the_end(self, events: asyncio.Queue[Event]) -> AsyncIterator[Event]:
        """Each event, before it becomes a part of its text; ends when all texts have, or one is dropped."""
        left = len(self._texts)
        while left:
            event = await events.get()
            yield event
            if isinstance(event, Dropped):
                return
            self._texts[event.index].add(event)
            left -= event.ended is not None

    async def _told(self, events: asyncio.Queue[Event]) -> AsyncIterator[str]:
        usage = self._ask.usage
        for opening in self._answer.opening(self._texts, usage):
            yield opening
        async for event in self._until_the_end(events):
            if isinstance(event, Dropped):
                yield failure_event(self._refusal(event).body())
                return
            if event.text or event.ended or self._ask.options.log_probs is not None:
                yield self._answer.event(event, self._texts[event.index], usage)
        self._outcome = "completed"
        if usage:
            yield self._answer.closing(self._figures())
        yield "data: [DONE]\n\n"

    def _refusal(self, event: Dropped) -> Refusal:
        """What is told of a text that is not finished."""
        self._outcome = event.why
        status, message = {
            "timeout": (504, f"Not finished within {self._service.limits.timeout:g} seconds."),
            "error": (500, "The model has failed: see the server's log."),
            "cancelled": (503, "Cancelled."),
        }[event.why]
        found = Refusal(status, message, code=event.why, outcome=event.why)
        # The reply counts itself, once.
        found.counted = True
        return found

    def _note(self) -> None:
        self._service.metrics.requests.add(outcome=self._outcome)
        written = sum(len(text.tokens) for text in self._texts)
        _log.info(
            "%s %s: %d tokens read, %d written, %.2f s", self._served.name, self._outcome,
            self._prepared.prompt_tokens, written, time.monotonic() - self._begun,
        )  # fmt: skip

    def _response(self) -> Response:
        return JSONResponse(self._answer.complete(self._texts, self._figures()))

    def _figures(self) -> dict[str, Any]:
        return figures_of(self._prepared.prompt_tokens, self._texts, self._begun)

    def _echoed(self) -> list[str]:
        if not self._ask.echo:
            return [""] * len(self._prepared.prompts)
        decode = tokenizer_of(self._served.model).decode
        return [
            prompt if isinstance(prompt, str) else str(decode(prompt, skip_special_tokens=True))
            for prompt in self._ask.prompts
        ]


class _EventStream(StreamingResponse):
    """Server-sent events; `finished` is called when they end, or nobody listens."""

    def __init__(self, events: AsyncIterator[str], finished: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._finished()
