"""Who gets a slot, waits, is sent away or dropped; with slots that write when they are told to."""

import queue
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ragjax.config import Decoding
from ragjax.generation.slots import Stepped
from ragjax.generation.transcript import Transcript
from ragjax.serving.job import Dropped, Job
from ragjax.serving.metrics import Metrics
from ragjax.serving.refusal import Refusal
from ragjax.serving.scheduler import Scheduler

SPELL = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)))
"""A tokenizer whose tokens are characters."""


class Scripted:
    """Two slots; each step writes as many letters in every taken one as the test allows."""

    count, room = 2, 100

    def __init__(self):
        self.taken, self.allowed, self.order = {}, queue.Queue(), []

    def warm(self):
        pass

    def join(self, slot, prompt, options, row=0):
        assert slot not in self.taken
        self.taken[slot] = 0
        self.order.append(prompt[0])

    def leave(self, slot):
        del self.taken[slot]

    def step(self, most=1):
        letters = self.allowed.get(timeout=10)
        if isinstance(letters, Exception):
            raise letters
        tokens = np.full((2, 8), -1)
        for slot in self.taken:
            tokens[slot, : len(letters)] = list(map(ord, letters))
        return Stepped(tokens, None)


@pytest.fixture
def slots():
    return Scripted()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def scheduler(slots, metrics):
    made = Scheduler("m", slots, metrics, queue=3)
    yield made
    slots.allowed.put("")
    made.stop()


def job(number, limit=100, stop=(), seconds=60.0):
    """A text to write, and what is heard of it."""
    heard = queue.Queue()
    options = Decoding(max_new_tokens=limit, stop=stop)
    transcript = Transcript(SPELL, [number], limit=limit, stop=stop)
    made = Job(number, [number], options, transcript, time.monotonic() + seconds, heard.put)
    made.heard = heard
    return made


def next_of(job):
    return job.heard.get(timeout=10)


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_those_who_wait_get_the_slots_that_become_free_in_their_order(scheduler, slots):
    first, second, third, fourth = (job(i, limit=2 + (i == 1)) for i in range(4))
    scheduler.submit([first, second])
    wait_for(lambda: len(slots.taken) == 2)
    scheduler.submit([third, fourth])
    for letters in ("a", "b", "c", "d", "e", "f"):
        slots.allowed.put(letters)
    written = {}
    for each in (first, second, third, fourth):
        piece, written[each.index] = None, ""
        while piece is None or not piece.ended:
            piece = next_of(each)
            written[each.index] += piece.text
    assert slots.order == [0, 1, 2, 3]
    assert written == {0: "ab", 1: "abc", 2: "cd", 3: "de"}


def test_more_than_may_wait_are_sent_away_and_told_when_to_come_back(scheduler, slots):
    scheduler.submit([job(0), job(1)])
    wait_for(lambda: len(slots.taken) == 2)
    scheduler.submit([job(2), job(3)])
    with pytest.raises(Refusal) as refusal:
        scheduler.submit([job(4), job(5)])
    assert refusal.value.status == 429
    assert int(refusal.value.headers()["Retry-After"]) >= 1
    scheduler.submit([job(6)])
    with pytest.raises(Refusal, match="at most 3"):
        scheduler.submit([job(i) for i in range(4)])


def test_who_leaves_frees_the_slot_or_the_place_in_the_queue(scheduler, slots):
    seated, other, waiting, last = (job(i) for i in range(4))
    scheduler.submit([seated, other])
    wait_for(lambda: len(slots.taken) == 2)
    scheduler.submit([waiting, last])
    scheduler.cancel([seated, waiting])
    slots.allowed.put("x")
    assert next_of(waiting) == Dropped(2, "cancelled")
    assert [next_of(seated).text, next_of(seated)] == ["x", Dropped(0, "cancelled")]
    slots.allowed.put("y")
    assert next_of(last).text == "y"
    assert slots.order == [0, 1, 3]


def test_who_takes_too_long_is_dropped(scheduler, slots):
    late, other = job(0, seconds=0.05), job(1)
    scheduler.submit([late, other])
    wait_for(lambda: len(slots.taken) == 2)
    time.sleep(0.06)
    slots.allowed.put("x")
    assert next_of(late).text == "x"
    assert next_of(late) == Dropped(0, "timeout")
    assert next_of(other).text == "x"


def test_what_stands_behind_the_end_is_nobodys(scheduler, slots, metrics):
    stopped, limited = job(0, stop=("cd",)), job(1, limit=3)
    scheduler.submit([stopped, limited])
    slots.allowed.put("abcdef")
    piece = next_of(stopped)
    assert (piece.text, piece.ended, len(piece.tokens)) == ("ab", "stop_string", 4)
    piece = next_of(limited)
    assert (piece.text, piece.ended, len(piece.tokens)) == ("abc", "length", 3)
    assert 'ragjax_generated_tokens_total{model="m"} 7' in metrics.text()


def test_a_model_that_fails_tells_everybody(scheduler, slots, caplog):
    jobs = [job(i) for i in range(3)]
    scheduler.submit(jobs)
    slots.allowed.put(RuntimeError("out of memory"))
    assert [next_of(each) for each in jobs] == [Dropped(i, "error") for i in range(3)]
    assert "out of memory" in caplog.text
    wait_for(lambda: scheduler.failed)
    with pytest.raises(Refusal, match="has failed"):
        scheduler.submit([job(9)])


def test_a_slot_that_cannot_be_freed_leaves_nobody_without_an_answer(scheduler, slots, monkeypatch):
    def broken(slot):
        raise RuntimeError("device lost")

    monkeypatch.setattr(slots, "leave", broken)
    ended, other = job(0, limit=1), job(1)
    scheduler.submit([ended, other])
    slots.allowed.put("a")
    assert [next_of(ended), next_of(other)] == [Dropped(0, "error"), Dropped(1, "error")]


def test_stopping_drops_what_is_left(slots, metrics):
    scheduler = Scheduler("n", slots, metrics, queue=3)
    left = job(0)
    scheduler.submit([left])
    wait_for(lambda: slots.taken)
    stopping = threading.Thread(target=scheduler.stop)
    stopping.start()
    slots.allowed.put("")
    stopping.join(timeout=10)
    assert not stopping.is_alive()
    assert next_of(left) == Dropped(0, "cancelled")
