"""A server whose model reads drafts of another answers what the model writes, and tells how they did."""

import re

import pytest

from ragjax.config import Serve
from ragjax.generation.continuation import continuations
from ragjax.generation.model_slots import ModelSlots
from ragjax.serving import Service

PATH, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
DRAWN = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True, "seed": 3}


@pytest.fixture(scope="module")
def service(teacher, near):
    made = Service(Serve(queue=16, max_body=10_000))
    slots = ModelSlots(teacher, draft=near, draft_tokens=2, count=2, room=32)
    slots.warm()
    made.add("teacher", teacher, slots, draft="near")
    yield made
    made.stop()


def counters(ask):
    """What the metrics say of drafts."""
    return {
        name: float(value)
        for name, value in re.findall(r'ragjax_(\w+)_total\{model="teacher"\} (\S+)', ask("/metrics").text)
    }


def test_greedy_answers_are_the_models_own_and_tell_how_the_drafts_did(ask, teacher):
    before = counters(ask)
    prompts = ["ab", "Once", "zz" * 4]
    answers = ask(PATH, *({"prompt": prompt, **GREEDY} for prompt in prompts))
    alone = continuations(teacher, prompts, max_new_tokens=12, stop_at_eos=False)
    assert [answer.json()["choices"][0]["text"] for answer in answers] == [each.text for each in alone]
    added = {name: value - before.get(name, 0) for name, value in counters(ask).items()}
    assert 0 < added["accepted_tokens"] < added["drafted_tokens"]
    timings = [answer.json()["timing"] for answer in answers]
    assert all(0 <= each["acceptance_rate"] <= 1 for each in timings)
    passes = sum(11 / each["tokens_per_pass"] for each in timings)
    assert passes == pytest.approx(added["draft_passes"])
    assert added["draft_passes"] < 33 == added["generated_tokens"] - 3


def test_a_draw_is_the_same_whoever_else_asks(ask):
    bodies = [
        {"prompt": "ab", **DRAWN}, {"prompt": "Once", **DRAWN, "top_p": 0.8, "repetition_penalty": 1.3},
        {"prompt": "xyz", **GREEDY}, {"prompt": "ab", **DRAWN, "seed": 4}, {"prompt": "q", **DRAWN, "n": 2},
    ]  # fmt: skip
    together = [answer.json()["choices"] for answer in ask(PATH, *bodies)]
    assert [ask(PATH, body).json()["choices"] for body in bodies] == together
    assert together[0] != together[3]


def test_log_probs_echo_and_stops_go_on_working(ask, events, teacher):
    [alone] = continuations(teacher, ["ab"], max_new_tokens=12, stop_at_eos=False, log_probs=2)
    body = {"prompt": "ab", **GREEDY, "logprobs": 2}
    told = ask(PATH, body).json()["choices"][0]["logprobs"]
    assert told["token_logprobs"] == pytest.approx(alone.log_probs.tolist(), abs=1e-4)
    streamed = [each["choices"][0]["logprobs"] for each in events(ask(PATH, {**body, "stream": True}))]
    assert [value for each in streamed for value in each["token_logprobs"]] == told["token_logprobs"]
    stopped = ask(PATH, {"prompt": "ab", **GREEDY, "echo": True, "stop": alone.text[5:7]}).json()
    assert stopped["choices"][0]["text"] == "ab" + alone.text[: alone.text.index(alone.text[5:7])]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    # A pass writes at least a token, also where a stop string leaves none of it.
    early = ask(PATH, {"prompt": "ab", **GREEDY, "stop": alone.text[1:3]}).json()
    assert early["usage"]["completion_tokens"] < 6
    assert early["timing"]["tokens_per_pass"] >= 1


def test_a_stream_ends_with_how_the_drafts_did(ask, events):
    asked = {"prompt": "ab", **GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    *_, last = events(ask(PATH, asked))
    assert set(last["timing"]) >= {"acceptance_rate", "tokens_per_pass"}


def test_who_drafts_is_told(ask):
    assert [each["draft"] for each in ask("/v1/models").json()["data"]] == ["near"]


@pytest.mark.slow
def test_the_page_shows_how_the_drafts_did(address, browser):
    page = browser.new_page()
    page.goto(address)
    page.get_by_label("Prompt", exact=True).fill("ab")
    page.get_by_label("New tokens").fill("12")
    page.get_by_role("button", name="Write").click()
    place = page.get_by_role("region", name="teacher")
    kept, leap = (
        place.locator("div", has=page.locator("dt", has_text=label)).locator("dd")
        for label in ("kept of what near drafts", "tokens a pass")
    )
    # Not by a script, which the page's policy forbids.
    while leap.text_content() == "–":
        page.wait_for_timeout(50)
    assert re.fullmatch(r"\d+ %", kept.text_content())
    assert 1 < float(leap.text_content()) <= 3
    page.close()
