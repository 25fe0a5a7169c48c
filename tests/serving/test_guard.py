"""Who may ask."""

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from ragjax.serving.guard import Guard
from ragjax.serving.metrics import Metrics

KEY = "a-key-of-some-length"


async def inside(scope, receive, send):
    await PlainTextResponse("inside")(scope, receive, send)


def asked(path="/v1/models", key=None, **headers):
    metrics = Metrics()
    guard = Guard(inside, hosts=["localhost", "[::1]", "box.lan"], api_key=key, metrics=metrics)

    async def send():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(guard), base_url="http://localhost:8000"
        ) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(send()), metrics.text()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("[::1]:8000", 200), ("box.lan:1", 200),
        ("evil.example", 421), ("localhost.evil.example", 421), ("", 421), ("[::1].evil", 421),
    ],
)  # fmt: skip
def test_the_server_answers_to_its_own_names_alone(host, status):
    assert asked(host=host)[0].status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200), ("https://box.lan", 200), ("https://evil.example", 403), ("null", 403)
    ],
)  # fmt: skip
def test_pages_of_other_sites_are_refused(origin, status):
    answer, _ = asked(origin=origin)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"Bearer {KEY}", 200), (f"bearer {KEY}", 200), ("Bearer " + KEY[:-1], 401), (KEY, 401),
        (f"Basic {KEY}", 401), ("Bearer", 401), ("", 401),
    ],
)  # fmt: skip
def test_the_key_lets_in(sent, status):
    answer, metrics = asked(key=KEY, authorization=sent)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert 'ragjax_requests_total{outcome="unauthorized"} 1' in metrics


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/health", 200), ("/metrics", 401)])
def test_only_the_page_and_health_need_no_key(path, status):
    assert asked(path, key=KEY)[0].status_code == status


def test_every_answer_has_headers_that_protect():
    for answer, _ in (asked(), asked(host="evil")):
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
