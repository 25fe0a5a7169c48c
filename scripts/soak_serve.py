"""Asks a server for a while as many clients do: some leave early, some send nonsense.

    python scripts/soak_serve.py [MODEL] [--drafted] [--requests 500] [--clients 32]

Holds what it hears against `ragjax.generation.continuations`: every answer that was finished is the text
that the model writes of that prompt alone, greedy or drawn by that seed. Nothing else may come than what each
kind of request is meant to get; a full queue (429) is asked again. The server's memory is told after a fifth
of the requests and at the end. Without a MODEL it makes a tiny random one. With --drafted the model reads
drafts of itself with noise on its parameters. Exits with 1 where something was amiss.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import tyro

from ragjax.config import Decoding
from ragjax.data import train_tokenizer
from ragjax.generation import continuations
from ragjax.interchange import load, save
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig

_ROOM = 64
_PROMPTS = ("def f(x):", "Once upon a time", "a", "The list of names is empty, and so is the other list.")
_MALFORMED: tuple[tuple[bytes, int], ...] = (
    (b"", 400), (b"{", 400), (b"[1, 2]", 400), (b'{"prompt": 5}', 400), (b'{"prompt": "a", "n": "x"}', 400),
    (b'{"prompt": "\\ud800"}', 400), (b'{"prompt": "a", "model": "none"}', 404), (b"\xff\xfe\x00", 400),
    (b'{"prompt": "a", "max_tokens": 100000}', 400), (b"[" * 50_000, 400), (b" " * 1_100_000, 413),
    (b'{"prompt": "a", "logit_bias": {"1": 5}}', 400), (b'{"prompt": [-1]}', 400),
)  # fmt: skip
"""Bodies that cannot be answered, and the status each gets."""


@dataclass
class Found:
    """What the clients heard."""

    outcomes: Counter[str] = field(default_factory=Counter)
    amiss: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """Bytes after a fifth of the requests, and at the end."""


def main(
    model: str | None = None, drafted: bool = False, requests: int = 500, clients: int = 32, seed: int = 0
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = model or str(save(_tiny_model(), Path(folder) / "tiny"))
        asked, own = _requests(), load(path)
        draft = _with_noise(own) if drafted else None
        expected = _alone(own, draft, asked)
        server, address = _start(path, None if draft is None else str(save(draft, Path(folder) / "draft")))
        try:
            begun = time.perf_counter()
            found = asyncio.run(_soak(address, server.pid, asked, expected, requests, clients, seed))
            seconds = time.perf_counter() - begun
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=60)
    if code:
        found.amiss.append(f"the server ended with {code}")
    before, after = (each / 1e6 for each in found.memory)
    told = ", ".join(f"{name} {count}" for name, count in sorted(found.outcomes.items()))
    print(f"{requests} requests of {clients} clients in {seconds:.1f} s: {told}")
    print(f"memory of the server: {before:.0f} MB after {requests // 5} requests, {after:.0f} MB at the end")
    print("\n".join(found.amiss[:20]) or "every finished answer is what the model writes alone")
    sys.exit(bool(found.amiss))


def _tiny_model() -> Model:
    text = [" ".join(_PROMPTS), "if the list is not empty: return names", "once more upon the time of day"]
    tokenizer = train_tokenizer(text * 9, vocab_size=300)
    config = DecoderConfig(
        vocab_size=len(tokenizer), positions=_ROOM, width=32, layers=2, heads=4, mlp_width=64,
        initializer_range=0.3, tied=False, eos_token=len(tokenizer) - 1,
    )  # fmt: skip
    return Model(config, init_params(config, 1), tokenizer)


def _with_noise(model: Model) -> Model:
    chance = np.random.default_rng(0)

    def noisy(x: jax.Array) -> jax.Array:
        return x + 0.1 * x.std() * chance.normal(size=x.shape).astype(x.dtype)

    return replace(model, params=jax.tree.map(noisy, model.params))


def _requests() -> list[dict[str, Any]]:
    """What can be asked; of nearly one length, so that few programs make the answers to compare with."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0}, {"temperature": 0.8, "seed": 1}, {"temperature": 1.5, "seed": 2, "top_p": 0.9},
        {"temperature": 1.0, "seed": 3, "top_k": 20}, {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 1.2, "seed": 4, "min_p": 0.02},
    ]  # fmt: skip
    return [
        {"prompt": prompt, "max_tokens": 9 + (i + j) % 8, **each}
        for i, prompt in enumerate(_PROMPTS)
        for j, each in enumerate(settings)
    ]


def _alone(model: Model, draft: Model | None, asked: list[dict[str, Any]]) -> list[str]:
    told = []
    for each in asked:
        fields = {name: value for name, value in each.items() if name not in ("prompt", "max_tokens")}
        options = Decoding(max_new_tokens=each["max_tokens"], **fields)
        told.append(continuations(model, [each["prompt"]], options, draft=draft)[0].text or "")
    return told


def _start(path: str, draft: str | None) -> tuple[subprocess.Popen[str], str]:
    flags = ["--port", "0", "--slots", "4", "--room", str(_ROOM), "--queue", "24"]
    flags += [] if draft is None else ["--draft", draft]
    server = subprocess.Popen(
        [sys.executable, "-m", "ragjax", "serve", path, *flags],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    told = ""
    assert server.stdout is not None
    for line in server.stdout:
        told += line
        if line.startswith("ready"):
            break
    address = re.search(r"http://127\.0\.0\.1:\d+", told)
    if address is None:
        raise SystemExit(f"The server did not start:\n{told}")
    return server, address[0]


async def _soak(
    address: str, pid: int, asked: list[dict], expected: list[str], requests: int, clients: int, seed: int
) -> Found:
    found, waiting = Found(), iter(range(requests))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:

        async def work() -> None:
            for number in waiting:
                # Of the request alone, whichever client sends it.
                chance = random.Random(f"{seed} {number}")
                await _one(client, chance, asked, expected, found)
                if number == requests // 5:
                    found.memory.append(_memory(pid))

        await asyncio.gather(*(work() for _ in range(clients)))
        found.memory.append(_memory(pid))
        await _settled(client, found)
    return found


async def _one(client: httpx.AsyncClient, chance: random.Random, asked, expected, found: Found) -> None:
    kind = chance.choices(("whole", "stream", "left", "malformed"), (4, 4, 2, 2))[0]
    if kind == "malformed":
        body, status = chance.choice(_MALFORMED)
        answer = await client.post(
            "/v1/completions", content=body, headers={"content-type": "application/json"}
        )
        _note(found, "refused", answer.status_code == status and "error" in answer.json(), body[:60])
        return
    number = chance.randrange(len(asked))
    body = {**asked[number], "stream": kind != "whole"}
    patience = chance.uniform(0, 0.2) if kind == "left" else None
    while True:
        try:
            status, text = await asyncio.wait_for(_asked(client, body), patience)
        except TimeoutError:
            found.outcomes["left early"] += 1
            return
        if status != 429:
            break
        found.outcomes["asked again"] += 1
        await asyncio.sleep(chance.uniform(0.05, 0.3))
    _note(found, "answered", status == 200 and text == expected[number], (body, status, text))


async def _asked(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, str]:
    if not body["stream"]:
        answer = await client.post("/v1/completions", json=body)
        return answer.status_code, answer.json()["choices"][0]["text"] if answer.is_success else answer.text
    text, done = "", False
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if not answer.is_success:
            return answer.status_code, ""
        async for line in answer.aiter_lines():
            done = line == "data: [DONE]"
            if line and not done:
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            if done:
                break
    return 200 if done else 0, text


def _note(found: Found, outcome: str, right: bool, what: object) -> None:
    found.outcomes[outcome if right else "amiss"] += 1
    if not right:
        found.amiss.append(f"amiss: {what}")


async def _settled(client: httpx.AsyncClient, found: Found) -> None:
    """Nothing is left in the queue or in a slot."""
    for _ in range(100):
        told = (await client.get("/metrics")).text
        left = sum(map(float, re.findall(r"ragjax_(?:queue_length|slots_busy){.*} (\S+)", told)))
        if not left:
            return
        await asyncio.sleep(0.1)
    found.amiss.append(f"{left:g} texts were never let go")


def _memory(pid: int) -> int:
    """Bytes a process holds in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    tyro.cli(main)
