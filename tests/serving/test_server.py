"""A server in a process of its own, asked by the official client of OpenAI's API, left, and stopped."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from ragjax.generation.continuation import continuations
from ragjax.interchange.folder import save

openai = pytest.importorskip("openai")
WAITING = 'ragjax_queue_length{model="teacher"}'
KEY = "a-key-of-some-length"
LONG = {"prompt": ["a", "b"] * 6, "n": 64, "max_tokens": 28, "temperature": 0, "stream": True}
"""Texts that take a while: two slots write them one after another."""


@pytest.fixture(scope="module")
def process(teacher, near, tmp_path_factory):
    """A server of a model and its draft, with two slots, and its address; its programs are those of the tests
    beside it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "key").write_text(KEY)
    command = ["serve", save(teacher, folder / "teacher"), "--draft", save(near, folder / "near")]
    command += ["--draft-tokens", "2", "--port", "0", "--slots", "2", "--room", "32", "--queue", "1000"]
    server = subprocess.Popen(
        [sys.executable, "-m", "ragjax", *map(str, command), "--api-key-file", str(folder / "key")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    told = []
    for line in server.stdout:
        told.append(line)
        if line.startswith("ready"):
            break
    address = re.search(r"http://127\.0\.0\.1:\d+", "".join(told))
    assert address, "".join(told)
    # What it says is read, so that the pipe never fills up.
    reader = threading.Thread(target=lambda: told.extend(server.stdout), daemon=True)
    reader.start()
    yield server, address[0], told
    server.kill()
    server.wait()


@pytest.fixture
def client(process):
    return httpx.Client(base_url=process[1], headers={"Authorization": f"Bearer {KEY}"}, timeout=30)


def figures(client):
    """The metrics, by name and labels."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_official_client_is_answered(process):
    client = openai.OpenAI(base_url=f"{process[1]}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["teacher", "near"]
    assert "drafts     near proposes up to 2 tokens at once, teacher decides\n" in process[2]
    asked = {"model": "teacher", "prompt": "ab", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens) == 8
    stream = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in stream[:-1]) == whole.choices[0].text
    assert stream[-1].usage == whole.usage
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="teacher", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.NotFoundError, match="only teacher, near"):
        client.completions.create(**asked | {"model": "another"})
    with pytest.raises(openai.AuthenticationError, match="Send the server's key"):
        openai.OpenAI(base_url=f"{process[1]}/v1", api_key="wrong").models.list()


def test_a_model_with_a_draft_writes_its_own_tokens_and_tells_how_it_went(process, client, teacher):
    [alone] = continuations(teacher, ["ab"], max_new_tokens=12, stop_at_eos=False)
    asked = {"prompt": "ab", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    told, other = (client.post("/v1/completions", json=asked | who).json() for who in ({}, {"model": "near"}))
    assert told["choices"][0]["text"] == alone.text
    assert told["timing"]["tokens_per_pass"] > 1
    assert "tokens_per_pass" not in other["timing"]
    found = figures(client)
    assert found['ragjax_accepted_tokens_total{model="teacher"}'] > 0
    assert found['ragjax_drafted_tokens_total{model="teacher"}'] > 0


def test_who_leaves_frees_the_slot(process, client):
    cancelled = 'ragjax_requests_total{outcome="cancelled"}'
    before = figures(client).get(cancelled, 0)
    with client.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        assert figures(client)[WAITING] > 0
    wait_for(lambda: figures(client).get(cancelled) == before + 1 and not figures(client)[WAITING])
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=LONG | {"stream": False}, timeout=httpx.Timeout(30, read=0.05))
    wait_for(lambda: figures(client)[cancelled] == before + 2)
    wait_for(lambda: figures(client)['ragjax_slots_busy{model="teacher"}'] == 0)
    assert figures(client)[WAITING] == 0


def test_sigterm_finishes_what_runs_and_refuses_what_comes(process, client):
    server, _, told = process
    with client.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        seen = [next(lines)]
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/health").status_code == 503)
        refused = client.post("/v1/completions", json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        seen += [line for line in lines if line]
    events = [json.loads(line.removeprefix("data: ")) for line in seen[:-1] if line]
    ended = [event["choices"][0]["index"] for event in events if event["choices"][0]["finish_reason"]]
    assert sorted(ended) == list(range(12 * 64))
    assert seen[-1] == "data: [DONE]"
    assert server.wait(timeout=20) == 0, "".join(told)
    assert "Traceback" not in "".join(told)
