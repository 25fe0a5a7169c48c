"""Fixtures of the tests of serving: a service of two tiny models, and ways to ask it."""

import asyncio
import copy
import json
import shutil
import threading
from dataclasses import replace

import httpx
import jax
import numpy as np
import pytest

from ragjax.config import Serve
from ragjax.generation.model_slots import ModelSlots
from ragjax.models.decoder import init_params
from ragjax.serving import Service, app, bind, serve, url_of

_PRINTED = 94
"""Tokens of the byte tokenizer that are ASCII's printed characters, from the first on."""


def writer(model, seed, **fields):
    """A random model whose likeliest texts are letters and signs, and change as they go."""
    config = replace(model.config, tied=False, **fields)
    params = init_params(config, seed)
    return replace(model, config=config, params=params | {"head": params["head"].at[_PRINTED:].set(0.0)})


@pytest.fixture(scope="session")
def teacher(tiny_byte_model):
    return writer(tiny_byte_model, seed=5)


@pytest.fixture(scope="session")
def student(teacher):
    """A smaller model of the same vocabulary, whose tokenizer knows how to write a conversation."""
    tokenizer = copy.deepcopy(teacher.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "{% if m.role == 'villain' %}{{ raise_exception('no villains here') }}{% endif %}"
        "{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    return writer(replace(teacher, tokenizer=tokenizer), seed=8, layers=1)


@pytest.fixture(scope="session")
def near(teacher):
    """A model that agrees with the teacher often, and not always."""
    chance = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.02 * chance.normal(size=x.shape).astype(x.dtype), teacher.params)
    return replace(teacher, params=params)


@pytest.fixture(scope="session")
def service(teacher, student):
    """Serves `teacher` and `student`, each with two slots of 32 tokens."""
    made = Service(Serve(queue=16, max_body=10_000))
    for name, model in (("teacher", teacher), ("student", student)):
        slots = ModelSlots(model, count=2, room=32)
        slots.warm()
        made.add(name, model, slots)
    yield made
    made.stop()


@pytest.fixture
def ask(service):
    """Sends a request, or several at once, in process; a dict is sent as JSON."""

    async def send(client, path, body, **headers):
        kind = {"content-type": "application/json"} if body is not None else {}
        content = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        method = "GET" if body is None else "POST"
        return await client.request(method, path, content=content, headers=kind | headers)

    async def together(path, bodies, headers):
        transport = httpx.ASGITransport(app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(send(client, path, body, **headers) for body in bodies))

    def asking(path, *bodies, **headers):
        answers = asyncio.run(together(path, bodies or [None], headers))
        return answers if len(bodies) > 1 else answers[0]

    return asking


@pytest.fixture
def events():
    """The objects of a stream, which must end as it should."""

    def read(answer):
        assert answer.headers["content-type"].startswith("text/event-stream")
        *told, last = [part.removeprefix("data: ") for part in answer.text.strip().split("\n\n")]
        assert last == "[DONE]"
        return [json.loads(each) for each in told]

    return read


@pytest.fixture
def address(service):
    """The service on a socket, while the test runs."""
    # Of the same models, since one that was stopped stays so.
    shared = Service(Serve(port=0))
    shared.models, shared.metrics, shared.stop = service.models, service.metrics, lambda: None
    bound, ready = bind("127.0.0.1", 0), threading.Event()
    thread = threading.Thread(target=serve, args=(shared, bound, ready.set))
    thread.start()
    assert ready.wait(10)
    yield url_of(bound)
    shared.draining = True
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
