"""The page: it needs nothing from elsewhere, runs under its own policy, and works in a browser."""

import base64
import hashlib
import re
import time

import httpx
import pytest

from ragjax.serving.page import PAGE, POLICY


def test_the_policy_allows_this_script_and_this_style_alone(ask):
    answer = ask("/")
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in POLICY
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|style=|\son\w+=""", PAGE)


def test_every_field_has_a_label():
    fields = re.findall(r"<(?:input|select|textarea)[^>]*\bid=\"(\w+)\"", PAGE)
    assert len(fields) == 9
    assert sorted(re.findall(r"<label for=\"(\w+)\"", PAGE)) == sorted(fields)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_a_person_can_compare_two_models(address, browser, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.get_by_label("Prompt", exact=True).fill("ab")
    page.get_by_label("New tokens").fill("20")
    page.get_by_role("button", name="Write").click()
    page.get_by_text(re.compile("times as fast|times the speed")).wait_for(timeout=20_000)
    body = {"prompt": "ab", "max_tokens": 20, "temperature": 0}
    for name in ("teacher", "student"):
        told = httpx.post(f"{address}/v1/completions", json={"model": name, **body}).json()
        place = page.get_by_role("region", name=name)
        assert place.locator(".text").text_content() == "ab" + told["choices"][0]["text"]
        assert place.locator("dd").nth(1).text_content() == "20"
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("New tokens").fill("31")
    page.get_by_role("button", name="Write").click()
    assert "ask for at most 30 new tokens" in page.get_by_role("alert").text_content(timeout=10_000)
    page.close()


@pytest.mark.slow
def test_a_person_can_stop_it(address, browser, service, monkeypatch):
    slots = service.models["teacher"].slots
    step = slots.step
    monkeypatch.setattr(slots, "step", lambda most=1: (time.sleep(0.2), step(1))[1])
    page = browser.new_page()
    page.goto(address)
    page.get_by_label("New tokens").fill("12")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("Writing …").wait_for()
    place = page.get_by_role("region", name="teacher")
    # Not by a script, which the page's policy forbids.
    while not place.locator(".text span").nth(1).text_content():
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert place.locator("dd").nth(1).text_content().endswith("+")
    assert page.get_by_role("button", name="Write").is_enabled()
    until = time.monotonic() + 10
    while re.search(r"ragjax_slots_busy.* [1-9]", httpx.get(f"{address}/metrics").text):
        assert time.monotonic() < until
    page.close()
