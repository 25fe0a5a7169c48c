"""The models that are served, and what is asked of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, count
from typing import Any

from ragjax.config import Decoding, Serve
from ragjax.data.token_bytes import token_bytes
from ragjax.data.tokenizer import encode_prompts
from ragjax.errors import InputError, listing
from ragjax.generation.prompts import complete, tokenizer_of
from ragjax.generation.request import ends_of
from ragjax.generation.slots import Slots
from ragjax.generation.transcript import Transcript
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel
from ragjax.serving.asks import Ask
from ragjax.serving.job import Event, Job
from ragjax.serving.metrics import Metrics
from ragjax.serving.refusal import Refusal
from ragjax.serving.scheduler import Scheduler


@dataclass(frozen=True)
class Served:
    """A model by its name."""

    name: str
    model: Model | OnnxModel
    slots: Slots
    scheduler: Scheduler
    draft: str | None = None
    """Name of the model whose drafts it reads; none: it writes alone."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chats(self) -> bool:
        """Whether its tokenizer knows how to write a conversation."""
        return bool(tokenizer_of(self.model).chat_template)

    def token_text(self, token: int) -> str:
        """How a token is told: its text, or its name where it is a part of a character."""
        tokenizer = tokenizer_of(self.model)
        text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return str(tokenizer.convert_ids_to_tokens(token)) if "\N{REPLACEMENT CHARACTER}" in text else text

    def token_bytes(self, token: int) -> list[int] | None:
        """What a token writes, which may be a part of a character; none where that is not known."""
        if self._bytes is not None:
            return list(self._bytes[token]) if token < len(self._bytes) else None
        text = str(tokenizer_of(self.model).decode([token], clean_up_tokenization_spaces=False))
        return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())

    @cached_property
    def _bytes(self) -> list[bytes] | None:
        return token_bytes(tokenizer_of(self.model))

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt that the tokenizer's chat template makes of a conversation.

        Raises:
          Refusal: there is no template, or it does not take these messages.
        """
        if not self.chats:
            raise Refusal(
                400, f"The tokenizer of {self.name} has no chat template: ask /v1/completions.", param="model"
            )
        from jinja2.exceptions import TemplateError

        try:
            return str(
                tokenizer_of(self.model).apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            raise Refusal(
                400, f"The chat template does not take these messages: {error}", param="messages"
            ) from error


@dataclass(frozen=True)
class Prepared:
    """An ask with its prompts as tokens."""

    prompts: list[list[int]]
    options: list[Decoding]
    """Of each prompt."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))


class Service:
    """Models by name, each with its slots and its queue."""

    def __init__(self, limits: Serve, api_key: str | None = None):
        """Serves nothing yet.

        Args:
          limits: what a request may take.
          api_key: the token that clients must send; none: they need none.
        """
        self.limits, self.api_key, self.metrics = limits, api_key, Metrics()
        self.models: dict[str, Served] = {}
        self.draining = False
        """Whether new requests are refused."""
        self.active = 0
        """Requests that are being answered."""

    def add(self, name: str, model: Model | OnnxModel, slots: Slots, *, draft: str | None = None) -> None:
        """Serves a model, the first one to all who name none.

        Args:
          name: by which clients ask for it.
          model: with a tokenizer.
          slots: of that model, warm.
          draft: name of the model that drafts in these slots; none: none does.

        Raises:
          InputError: the model has no tokenizer.
        """
        tokenizer_of(model)
        scheduler = Scheduler(name, slots, self.metrics, queue=self.limits.queue)
        self.models[name] = Served(name, model, slots, scheduler, draft)

    @property
    def status(self) -> str:
        """Ok, draining or failed."""
        if any(served.scheduler.failed for served in self.models.values()):
            return "failed"
        return "draining" if self.draining else "ok"

    def find(self, name: str | None) -> Served:
        """The model of a name.

        Raises:
          Refusal: there is none (404).
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refusal(
                404, f"There is no model {name[:80]!r}, only {', '.join(self.models)}.",
                param="model", code="model_not_found",
            )  # fmt: skip
        return self.models[name]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While a request is answered.

        Raises:
          Refusal: the server is about to stop (503).
        """
        if self.draining:
            raise Refusal(
                503, "The server is about to stop: ask another, or come back.",
                code="draining", outcome="draining", retry_after=5,
            )  # fmt: skip
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def prepare(self, served: Served, ask: Ask) -> Prepared:
        """The prompts of an ask as tokens, checked; it takes a while for long ones.

        Raises:
          Refusal: names every prompt and option that does not fit.
        """
        # Before anything is made for each of them.
        served.scheduler.check(len(ask.prompts) * ask.choices)
        model, room = served.model, served.slots.room
        texts = iter(
            encode_prompts(tokenizer_of(model), [prompt for prompt in ask.prompts if isinstance(prompt, str)])
        )
        tokens = [next(texts) if isinstance(prompt, str) else prompt for prompt in ask.prompts]
        _check_room(tokens, ask.options.max_new_tokens, room)
        try:
            ready = complete(model, tokens, ask.options)
        except InputError as error:
            raise Refusal(400, str(error), param="prompt") from error
        options = [
            ask.options if ask.limited else replace(ask.options, max_new_tokens=room - len(prompt))
            for prompt in ready
        ]
        return Prepared(ready, options)

    def begin(self, served: Served, ask: Ask, prepared: Prepared) -> tuple[list[Job], asyncio.Queue[Event]]:
        """Lets the texts of an ask be written; their pieces come through the queue.

        Raises:
          Refusal: there is no room for them.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            # The loop is closed where the server was cut off, and nobody listens.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        jobs = self._jobs(served, ask, prepared, tell)
        served.scheduler.submit(jobs)
        return jobs, events

    def _jobs(self, served: Served, ask: Ask, prepared: Prepared, tell: Any) -> list[Job]:
        deadline = time.monotonic() + self.limits.timeout
        jobs: list[Job] = []
        for prompt, options in zip(prepared.prompts, prepared.options, strict=True):
            for _ in range(ask.choices):
                transcript = Transcript(
                    served.model.tokenizer, prompt, limit=options.max_new_tokens,
                    ends=ends_of(served.model, options), stop=options.stop,
                )  # fmt: skip
                jobs.append(Job(len(jobs), prompt, options, transcript, deadline, tell))
        return jobs

    def stop(self) -> None:
        """Ends all work at once."""
        for served in self.models.values():
            served.scheduler.stop()


def _check_room(prompts: Sequence[Sequence[int]], new: int, room: int) -> None:
    """Refuses prompts that leave no room for the new tokens."""
    found = []
    for number, prompt in enumerate(prompts):
        left = room - max(1, len(prompt))
        if new > left:
            remedy = f"ask for at most {left} new tokens" if left > 0 else "shorten it"
            found.append(f"prompt {number} has {len(prompt)} tokens, {new} new ones are asked for: {remedy}")
    if found:
        raise Refusal(
            400, f"There is room for {room} tokens, prompt and answer together:\n{listing(found)}",
            param="prompt", code="context_length_exceeded",
        )  # fmt: skip


def names_of(given: Sequence[str]) -> list[str]:
    """A name for each model: the last part of its path, or its id on a hub; never the same for two.

    Example:
      >>> names_of(["runs/teacher/", "runs/a/student", "openai-community/gpt2", "student-3", "old/student"])
      ['teacher', 'student', 'gpt2', 'student-3', 'student-2']
    """
    names: list[str] = []
    for each in given:
        name = each.rstrip("/").rpartition("/")[2] or "model"
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(next(each for each in chain([name], numbered) if each not in names))
    return names
