"""What a client asks for, read from the bodies of OpenAI's protocol.

A parameter that would change the answer and is not known here is refused by name; one that changes
nothing is passed over.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ragjax.config import Decoding
from ragjax.errors import InputError
from ragjax.generation.slots import MOST_ALTERNATIVES
from ragjax.serving.fields import Fields
from ragjax.serving.refusal import Refusal

Prompt: TypeAlias = str | list[int]
Encode: TypeAlias = Callable[[list[Prompt]], list[list[int]]]

_HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
}  # fmt: skip
_MOST_CHOICES, _MOST_STOPS = 64, 16
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Ask:
    """Texts to write, and how to tell them."""

    model: str | None
    """Name of the model; none: the first one."""
    prompts: list[Prompt]
    choices: int
    """Texts for each prompt."""
    options: Decoding
    limited: bool
    """Whether the number of new tokens was asked for; else it is what there is room for."""
    stream: bool
    usage: bool
    """Whether a stream ends with the number of tokens."""
    echo: bool = False
    """Whether the prompt is a part of the text."""


def completion_ask(values: dict[str, Any]) -> Ask:
    """The request of `/v1/completions`.

    Raises:
      Refusal: names everything that cannot be done.
    """
    fields = Fields(values)
    prompts = _prompts(fields)
    fields.only("suffix", "")
    wanted = fields.whole("logprobs", None, 0, MOST_ALTERNATIVES)
    echo = fields.flag("echo")
    if echo and wanted is not None:
        fields.problem("logprobs", "of a prompt are not told: ask for it without echo")
    fields.only("best_of", 1, values.get("n") or 1)
    return _ask(fields, prompts, limit=16, limit_names=("max_tokens",), log_probs=wanted, echo=echo)


def chat_ask(values: dict[str, Any], render: Callable[[list[dict[str, str]]], str]) -> Ask:
    """The request of `/v1/chat/completions`.

    Args:
      values: the body.
      render: makes a prompt of messages.

    Raises:
      Refusal: names everything that cannot be done.
    """
    fields = Fields(values)
    messages = _messages(fields)
    fields.only("tools", [])
    fields.only("tool_choice", "none", "auto")
    fields.only("functions", [])
    fields.only("function_call", "none", "auto")
    fields.only("response_format", {"type": "text"})
    fields.only("modalities", ["text"])
    told = fields.flag("logprobs")
    likeliest = fields.whole("top_logprobs", 0, 0, MOST_ALTERNATIVES)
    if likeliest and not told:
        fields.problem("top_logprobs", "goes with logprobs: set logprobs to true as well")
    prompts: list[Prompt] = [render(messages)] if messages else []
    return _ask(
        fields, prompts, limit=None, limit_names=("max_completion_tokens", "max_tokens"),
        log_probs=likeliest if told else None,
    )  # fmt: skip


def _ask(
    fields: Fields,
    prompts: list[Prompt],
    *,
    limit: int | None,
    limit_names: tuple[str, ...],
    log_probs: int | None,
    echo: bool = False,
) -> Ask:
    """The rest, which is the same for both."""
    model, stream = fields.text("model"), fields.flag("stream")
    limits = [fields.whole(name, None, 1, _MOST_TOKENS) for name in limit_names]
    limit = next((each for each in limits if each is not None), limit)
    temperature = fields.real("temperature", 1.0, 0.0, 1000.0)
    filters = {
        "top_k": max(0, fields.whole("top_k", 0, -1, _MOST_TOKENS)),
        "top_p": fields.real("top_p", 1.0, 0.0, 1.0),
        "min_p": fields.real("min_p", 0.0, 0.0, 1.0),
    }
    penalty = fields.real("repetition_penalty", 1.0, 0.01, 100.0)
    seed = fields.whole("seed", None, 0, 2**31 - 1)
    stop = fields.strings("stop", _MOST_STOPS)
    choices = fields.whole("n", 1, 1, _MOST_CHOICES)
    for name in ("presence_penalty", "frequency_penalty"):
        fields.only(name, 0)
    fields.only("logit_bias", {})
    past_end = fields.flag("ignore_eos")
    usage = _usage(fields, stream)
    fields.finish(_HARMLESS)
    # A top_p of 0 is the likeliest token, as it is in the limit.
    greedy = temperature == 0 or filters["top_p"] == 0
    try:
        options = Decoding(
            max_new_tokens=limit or 1, temperature=0.0 if greedy else temperature,
            repetition_penalty=penalty, seed=secrets.randbelow(2**31) if seed is None else seed,
            stop=stop, stop_at_eos=not past_end, log_probs=log_probs, **({} if greedy else filters),
        )  # fmt: skip
    except InputError as error:
        raise Refusal(400, str(error)) from error
    return Ask(model, prompts, choices, options, limit is not None, stream, usage, echo)


def _prompts(fields: Fields) -> list[Prompt]:
    """Texts, or token ids: one prompt, or a list of them."""
    value = fields.value("prompt")
    several = isinstance(value, list) and value and not _token_ids(value)
    prompts = value if several else [value]
    if not all(isinstance(each, str) or (_token_ids(each) and each) for each in prompts):
        fields.problem("prompt", "must be a string or token ids, or a list of such, at least one")
        return []
    return prompts


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each <= _MOST_TOKENS for each in value
    )


def _messages(fields: Fields) -> list[dict[str, str]]:
    """Messages with their role and text."""
    value = fields.value("messages")
    if not isinstance(value, list) or not value:
        fields.problem("messages", "must be a list of at least one message")
        return []
    found = []
    for number, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        text = _content(message.get("content")) if isinstance(message, dict) else None
        if not isinstance(role, str) or text is None:
            fields.problem(f"messages[{number}]", "must have a role and a content of text")
            continue
        more = sorted(message.keys() - {"role", "content", "name"})
        if [name for name in more if message[name]]:
            fields.problem(f"messages[{number}]", f"holds {', '.join(more)[:60]}, which is not supported")
        found.append({"role": role, "content": text})
    return found


def _content(value: Any) -> str | None:
    """A text, or the parts of one."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [None]
    texts: list[Any] = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts
    ]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _usage(fields: Fields, stream: bool) -> bool:
    options = fields.value("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not stream:
        fields.problem("stream_options", "is an object, and goes with stream")
        return False
    inner = Fields(options)
    usage = inner.flag("include_usage")
    inner.finish({"include_obfuscation"})
    return usage
