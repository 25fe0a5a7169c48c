"""What the server answers is what the model writes alone, in OpenAI's shape."""

import json
import time
from dataclasses import replace

import pytest

from ragjax.config import Decoding
from ragjax.generation.continuation import continuations
from ragjax.serving.asks import completion_ask
from ragjax.serving.refusal import Refusal

PATH, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


def alone(model, prompt, row=0, **fields):
    """One prompt by itself; prompts of at most 8 tokens and 9 to 16 new ones are one program."""
    options = replace(Decoding(max_new_tokens=12, stop_at_eos=False), **fields)
    return continuations(model, [prompt], options, rows=[row])[0]


def test_a_prompt_is_continued(ask, teacher):
    answer = ask(PATH, {"model": "teacher", "prompt": "ab", **GREEDY})
    expected = alone(teacher, "ab")
    told = answer.json()
    assert answer.status_code == 200
    assert told["object"] == "text_completion"
    assert told["choices"] == [
        {"text": expected.text, "index": 0, "logprobs": None, "finish_reason": "length"}
    ]
    assert told["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}


def test_the_first_model_answers_who_names_none_and_others_by_name(ask, teacher, student):
    for named, model in (({}, teacher), ({"model": "student"}, student)):
        told = ask(PATH, {"prompt": "xyz", **GREEDY, **named}).json()
        assert told["choices"][0]["text"] == alone(model, "xyz").text


@pytest.mark.parametrize("prompt", [["a", "Once", "zz" * 4], [[1, 2, 3], [250]]])
def test_several_prompts_and_choices_are_told_in_their_order(ask, teacher, prompt):
    told = ask(PATH, {"prompt": prompt, "n": 2, "seed": 5, **GREEDY, "temperature": 1.5}).json()
    twice = [each for each in prompt for _ in range(2)]
    expected = [alone(teacher, each, row, temperature=1.5, seed=5) for row, each in enumerate(twice)]
    assert [each["index"] for each in told["choices"]] == list(range(len(twice)))
    assert [each["text"] for each in told["choices"]] == [each.text for each in expected]
    assert told["usage"]["prompt_tokens"] == sum(map(len, prompt))


def test_token_ids_are_one_prompt(ask, teacher):
    told = ask(PATH, {"prompt": [97, 98], **GREEDY}).json()
    assert told["choices"][0]["text"] == alone(teacher, [97, 98]).text


def test_requests_at_once_write_what_each_writes_alone(ask, teacher):
    settings = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 2.0, "seed": 4, "top_p": 0.7, "top_k": 30},
        {"temperature": 0, "repetition_penalty": 1.8},
        {"temperature": 1.2, "seed": 9, "min_p": 0.02},
    ]
    bodies = [
        {"prompt": chr(97 + i) * (1 + i), **GREEDY, **settings[i % 5], "max_tokens": 9 + i} for i in range(8)
    ]
    for body, answer in zip(bodies, ask(PATH, *bodies), strict=True):
        fields = {name: body[name] for name in body if name not in ("prompt", "max_tokens", "ignore_eos")}
        expected = alone(teacher, body["prompt"], max_new_tokens=body["max_tokens"], **fields)
        assert answer.json()["choices"][0]["text"] == expected.text


def test_a_stream_is_the_answer_in_pieces(ask, events, teacher):
    body = {"prompt": "ab", "n": 2, "seed": 1, **GREEDY, "temperature": 1.0}
    whole = ask(PATH, body).json()
    parts = events(ask(PATH, {**body, "stream": True, "stream_options": {"include_usage": True}}))
    *pieces, last = parts
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {each["usage"] for each in pieces} == {None}
    for choice in whole["choices"]:
        own = [each["choices"][0] for each in pieces if each["choices"][0]["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + ["length"]


def test_a_stop_string_ends_the_text_before_it(ask, teacher):
    text = alone(teacher, "ab").text
    assert len(set(text)) > 4
    told = ask(PATH, {"prompt": "ab", **GREEDY, "stop": ["never", text[1:3]]}).json()
    assert told["choices"][0]["text"] == text[: text.index(text[1:3])]
    assert told["choices"][0]["finish_reason"] == "stop"


def test_log_probs_are_the_models_own(ask, events, teacher):
    expected = alone(teacher, "ab", log_probs=3)
    body = {"prompt": "ab", **GREEDY, "logprobs": 3}
    told = ask(PATH, body).json()["choices"][0]["logprobs"]
    assert told["token_logprobs"] == pytest.approx(expected.log_probs.tolist(), abs=1e-4)
    for best, likeliest in zip(told["top_logprobs"], expected.alternatives, strict=True):
        assert list(best.values()) == pytest.approx(list(likeliest.values()), abs=1e-4)
    assert all(token in best for token, best in zip(told["tokens"], told["top_logprobs"], strict=True))
    streamed = [each["choices"][0]["logprobs"] for each in events(ask(PATH, {**body, "stream": True}))]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for each in streamed for value in each[name]] == told[name]


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
def test_an_echo_begins_with_the_prompt(ask, events, teacher, prompt):
    begins = prompt if isinstance(prompt, str) else teacher.tokenizer.decode(prompt)
    expected = begins + alone(teacher, prompt).text
    body = {"prompt": prompt, **GREEDY, "echo": True}
    assert ask(PATH, body).json()["choices"][0]["text"] == expected
    pieces = events(ask(PATH, {**body, "stream": True}))
    assert "".join(each["choices"][0]["text"] for each in pieces) == expected


def test_a_conversation_goes_through_the_template(ask, events):
    body = {
        "model": "student", **GREEDY, "logprobs": True, "top_logprobs": 2,
        "messages": [
            {"role": "system", "content": "!"},
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        ],
    }  # fmt: skip
    rendered = {"model": "student", "prompt": "s:!\nu:hi\na:", **GREEDY, "logprobs": 2}
    [expected] = ask(PATH, rendered).json()["choices"]
    told = ask(CHAT, body).json()
    [choice] = told["choices"]
    assert told["object"] == "chat.completion"
    assert choice["message"]["content"] == expected["text"]
    assert choice["message"]["role"] == "assistant"
    content = choice["logprobs"]["content"]
    assert [each["token"] for each in content] == expected["logprobs"]["tokens"]
    assert [each["logprob"] for each in content] == expected["logprobs"]["token_logprobs"]
    assert b"".join(bytes(each["bytes"]) for each in content) == expected["text"].encode()
    for each, likeliest in zip(content, expected["logprobs"]["top_logprobs"], strict=True):
        assert {best["token"]: best["logprob"] for best in each["top_logprobs"]} == likeliest
    first, *pieces = events(ask(CHAT, {**body, "stream": True}))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in pieces) == expected["text"]


def test_bytes_of_tokens_are_what_they_write_where_they_are_parts_of_characters(service, teacher):
    served, text = service.find("student"), "é€ a"
    tokens = teacher.tokenizer.encode(text)
    assert len(tokens) == 7
    assert bytes(byte for token in tokens for byte in served.token_bytes(token)) == text.encode()


def test_a_conversation_may_fill_the_room(ask):
    told = ask(CHAT, {"model": "student", "messages": [{"role": "user", "content": "hi"}],
                      "ignore_eos": True, "temperature": 0}).json()  # fmt: skip
    assert told["usage"]["total_tokens"] == 32
    assert told["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (PATH, b"{", 400, "not JSON"),
        (PATH, b'"text"', 400, "must be a JSON object"),
        (PATH, b'{"prompt": "\\ud800"}', 400, "not JSON"),
        (PATH, b'{"prompt": "a", "temperature": NaN}', 400, "NaN is no number"),
        (PATH, b"[" * 5_000, 400, "not JSON"),
        (PATH, {"prompt": "a", "temperature": 10**400}, 400, "temperature must be a number from 0 to 1000"),
        (PATH, b'{"prompt": "a", "top_p": 1e999}', 400, "top_p must be a number from 0 to 1"),
        (PATH, b" " * 10_001, 413, "longer than 10000 bytes"),
        (PATH, {"prompt": "a", "model": "none"}, 404, "only teacher, student"),
        (PATH, {"prompt": "a" * 28, "max_tokens": 5}, 400, "ask for at most 4 new tokens"),
        (PATH, {"prompt": [1, 257]}, 400, "the vocabulary ends at 256"),
        (PATH, {"prompt": "a", "n": 17}, 400, "ask for at most 16"),
        (CHAT, {"model": "teacher", "messages": [{"role": "user", "content": "a"}]}, 400, "no chat template"),
        (CHAT, {"model": "student", "messages": [{"role": "villain", "content": "a"}]}, 400, "no villains"),
        (CHAT, {"model": "student", "messages": []}, 400, "at least one message"),
        ("/v1/none", {}, 404, "Not Found"),
        ("/v1/models/../x", None, 404, "only teacher, student"),
        ("/v1/models", {}, 405, "Method Not Allowed"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_the_apis_shape(ask, path, body, status, message):
    answer = ask(path.replace("..", "%2e%2e"), body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert message in error["message"]


def test_a_form_of_another_site_is_not_read(ask):
    assert ask(PATH, b'{"prompt": "a"}', **{"content-type": "text/plain"}).status_code == 415


def test_too_many_texts_are_refused_before_anything_is_made_of_them(service):
    many = completion_ask({"prompt": ["a"] * 5, "n": 4})
    with pytest.raises(Refusal, match="20 texts at once are too many: ask for at most 16"):
        service.prepare(service.find("teacher"), many)


def test_models_are_told_by_name(ask):
    told = ask("/v1/models").json()["data"]
    assert [(each["id"], each["object"], each["room"], each["chat"]) for each in told] == [
        ("teacher", "model", 32, False), ("student", "model", 32, True),
    ]  # fmt: skip
    assert ask("/v1/models/student").json() == told[1]


def test_a_server_that_drains_refuses(ask, service):
    assert ask("/health").json() == {"status": "ok"}
    service.draining = True
    try:
        answer = ask(PATH, {"prompt": "a", **GREEDY})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) > 0
        assert ask("/health").status_code == 503
    finally:
        service.draining = False


def test_what_takes_too_long_is_given_up_and_told(ask, service, monkeypatch):
    monkeypatch.setattr(service, "limits", replace(service.limits, timeout=1e-9))
    answer = ask(PATH, {"prompt": "a", **GREEDY})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    streamed = ask(PATH, {"prompt": "a", **GREEDY, "stream": True})
    assert streamed.status_code == 200
    assert json.loads(streamed.text.removeprefix("data: "))["error"]["code"] == "timeout"


def test_a_full_queue_sends_away_and_nobody_is_forgotten(ask, service, monkeypatch):
    slots = service.models["teacher"].slots
    step = slots.step
    monkeypatch.setattr(slots, "step", lambda most=1: (time.sleep(0.05), step(most))[1])
    bodies = [{"prompt": "a", "n": 9, **GREEDY}] * 4
    codes = sorted(answer.status_code for answer in ask(PATH, *bodies))
    assert set(codes) == {200, 429}
    until = time.monotonic() + 5
    while service.active and time.monotonic() < until:
        time.sleep(0.01)
    assert service.active == 0
    assert ask(PATH, {"prompt": "a", **GREEDY}).status_code == 200
