"""Bodies of requests: defaults as OpenAI has them, and refusals that name what is wrong."""

import pytest

from ragjax.serving.asks import chat_ask, completion_ask
from ragjax.serving.refusal import Refusal


def chat(values):
    return chat_ask(
        {"messages": [{"role": "user", "content": "hi"}], **values}, lambda messages: str(messages)
    )


def complete(values):
    return completion_ask({"prompt": "a", **values})


def test_defaults_are_openais():
    ask = complete({})
    assert (ask.options.temperature, ask.options.top_p, ask.options.max_new_tokens) == (1.0, 1.0, 16)
    assert (ask.choices, ask.stream, ask.echo, ask.limited) == (1, False, False, True)
    assert not chat({}).limited
    assert complete({}).options.seed != complete({}).options.seed


def test_whole_numbers_are_real_ones_so_that_they_compile_nothing():
    names = ("temperature", "top_p", "min_p", "repetition_penalty")
    options = complete(dict.fromkeys(names, 1)).options
    assert [type(getattr(options, name)) for name in names] == [float] * 4


def test_null_is_as_good_as_absent():
    absent = complete({"seed": 1})
    assert complete({"seed": 1, "n": None, "stop": None, "logprobs": None, "stream": None}) == absent


@pytest.mark.parametrize("read", [complete, chat])
def test_what_changes_nothing_is_passed_over(read):
    harmless = {
        "user": "me",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "store": False,
    }
    assert read({"seed": 1, **harmless}) == read({"seed": 1})


@pytest.mark.parametrize(
    ("read", "values", "named"),
    [
        (complete, {"logit_bias": {"5": 1}}, "logit_bias"),
        (complete, {"presence_penalty": 0.5, "frequency_penalty": 1}, "presence_penalty frequency_penalty"),
        (complete, {"suffix": "end"}, "suffix"),
        (complete, {"best_of": 3}, "best_of"),
        (complete, {"echo": True, "logprobs": 1}, "logprobs"),
        (complete, {"tempreature": 1}, "tempreature"),
        (complete, {"temperature": "hot", "top_p": 2, "n": 0}, "temperature top_p n"),
        (complete, {"max_tokens": 0, "seed": -1, "logprobs": 21}, "max_tokens seed logprobs"),
        (complete, {"max_tokens": 1.5, "stream": "yes", "n": True}, "max_tokens stream n"),
        (complete, {"stop": ["a", ""]}, "stop"),
        (complete, {"stop": ["a"] * 17}, "stop"),
        (complete, {"stream_options": {"include_usage": True}}, "stream_options"),
        (complete, {"prompt": []}, "prompt"),
        (complete, {"prompt": [[]]}, "prompt"),
        (complete, {"prompt": ["a", 5]}, "prompt"),
        (complete, {"prompt": [True]}, "prompt"),
        (complete, {"prompt": [2**40]}, "prompt"),
        (complete, {"model": 5}, "model"),
        (chat, {"tools": [{"type": "function"}]}, "tools"),
        (chat, {"response_format": {"type": "json_object"}}, "response_format"),
        (chat, {"top_logprobs": 2}, "top_logprobs"),
        (chat, {"messages": [{"role": "user"}]}, "messages[0]"),
        (chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        (chat, {"messages": [{"role": "a", "content": "b", "tool_calls": [1]}]}, "messages[0]"),
        (chat, {"messages": "hi"}, "messages"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(read, values, named):
    with pytest.raises(Refusal) as refusal:
        read(values)
    assert refusal.value.status == 400
    lines = refusal.value.message.splitlines()[1:]
    assert {line.split()[1] for line in lines} == set(named.split())
    assert refusal.value.param in named.split()


def test_at_temperature_0_filters_are_as_good_as_absent():
    assert complete({"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 1}) == complete(
        {"temperature": 0, "seed": 1}
    )
    assert complete({"top_p": 0, "seed": 1}).options.temperature == 0
