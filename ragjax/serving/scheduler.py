"""Continuous batching: one thread keeps the slots of a model busy with the texts that wait."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal

from ragjax.generation.slots import Slots, Stepped
from ragjax.serving.job import Drafted, Dropped, Job, Piece, Token
from ragjax.serving.metrics import Metrics
from ragjax.serving.refusal import Refusal

_PATIENCE = 0.02
"""Seconds of one call of the device: so long may someone wait to join or to leave, or a reader for more.
Of a small model many tokens fit into it, so that it is not held up by being asked for each."""
_log = logging.getLogger(__name__)


class Scheduler:
    """A queue and a batch. Texts join the batch as slots become free, in the order in which they came."""

    def __init__(self, name: str, slots: Slots, metrics: Metrics, *, queue: int):
        """Begins to work.

        Args:
          name: of the model, for metrics.
          slots: warm, and used by nobody else.
          metrics: are kept up.
          queue: texts that may wait.
        """
        self._name, self._slots, self._metrics, self._queue = name, slots, metrics, queue
        self._waiting: deque[Job] = deque()
        self._seated: dict[int, Job] = {}
        self._change = threading.Condition()
        self._stopping = self._joined = False
        self._seconds_a_token: float | None = None
        self._seconds_a_text = 1.0
        self.failed = False
        """Whether the thread died of an error; nothing is written any more."""
        metrics.waiting.follow(lambda: len(self._waiting), model=name)
        metrics.slots.follow(lambda: slots.count, model=name)
        metrics.busy.follow(lambda: len(self._seated), model=name)
        self._thread = threading.Thread(target=self._work, name=f"slots of {name}", daemon=True)
        self._thread.start()

    def check(self, count: int) -> None:
        """Refuses more texts at once than may ever wait.

        Raises:
          Refusal: there will never be room for them (400).
        """
        if count > self._queue:
            raise Refusal(400, f"{count} texts at once are too many: ask for at most {self._queue}.")

    def submit(self, jobs: Sequence[Job]) -> None:
        """Lets all of these texts wait for a slot.

        Raises:
          Refusal: there is no room for all of them (429), or never will be (400), or nobody works (503).
        """
        self.check(len(jobs))
        with self._change:
            if self.failed or self._stopping:
                raise Refusal(503, "The model has failed: see the server's log.", outcome="error")
            if len(self._waiting) + len(jobs) > self._queue:
                rounds = math.ceil(len(self._waiting) / self._slots.count)
                raise Refusal(
                    429, f"{len(self._waiting)} texts wait already, {self._queue} may: come back later.",
                    code="queue_full", outcome="full",
                    retry_after=max(1, math.ceil(rounds * self._seconds_a_text)),
                )  # fmt: skip
            self._waiting.extend(jobs)
            self._change.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Drops those of these texts that are not finished."""
        with self._change:
            for job in jobs:
                job.cancelled = True
            self._change.notify()

    def stop(self) -> None:
        """Drops what is left, and ends the thread."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._awaited():
                self._drop()
                self._seat()
                if self._seated:
                    self._step()
        except Exception:
            _log.exception("The model %s has failed.", self._name)
            self.failed = True
        with self._change:
            why: Literal["cancelled", "error"] = "error" if self.failed else "cancelled"
            left = [*self._waiting, *self._seated.values()]
            self._waiting.clear()
            self._seated.clear()
            self._stopping = True
        for job in left:
            job.tell(Dropped(job.index, why))

    def _awaited(self) -> bool:
        """Waits for something to do; false where there will be nothing."""
        with self._change:
            while not (self._waiting or self._seated or self._stopping):
                self._change.wait()
            return not self._stopping

    def _drop(self) -> None:
        """Lets go of texts that nobody waits for, or that have taken too long."""
        with self._change:
            late = [(job, why) for job in self._waiting if (why := job.dropped())]
            for job, _ in late:
                self._waiting.remove(job)
        for job, why in late:
            job.tell(Dropped(job.index, why))
        for slot, job in list(self._seated.items()):
            if why := job.dropped():
                self._leave(slot)
                job.tell(Dropped(job.index, why))

    def _seat(self) -> None:
        """Gives free slots to those who wait."""
        for slot in range(self._slots.count):
            if slot in self._seated:
                continue
            with self._change:
                if not self._waiting:
                    return
                job = self._seated[slot] = self._waiting.popleft()
            job.begun = time.monotonic()
            self._slots.join(slot, job.prompt, job.options, row=job.index)
            self._joined = True
            self._metrics.prompt_tokens.add(len(job.prompt), model=self._name)

    def _step(self) -> None:
        begun = time.monotonic()
        known = self._seconds_a_token
        stepped = self._slots.step(1 if known is None else max(1, int(_PATIENCE / known)))
        now = time.monotonic()
        if not self._joined:
            took = (now - begun) / max(1, int((stepped.tokens >= 0).sum(1).max(initial=0)))
            self._seconds_a_token = took if known is None else known + 0.1 * (took - known)
        self._joined = False
        for slot, job in list(self._seated.items()):
            piece = _piece(job, stepped, slot, now)
            if not piece.tokens:
                continue
            self._measure(job, piece, now)
            if piece.ended:
                self._leave(slot)
                self._seconds_a_text += 0.1 * (now - job.begun - self._seconds_a_text)
            job.tell(piece)

    def _leave(self, slot: int) -> None:
        # In this order, so that a text whose slot fails here is told of it as all others are.
        self._slots.leave(slot)
        del self._seated[slot]

    def _measure(self, job: Job, piece: Piece, now: float) -> None:
        count = len(piece.tokens)
        self._metrics.generated_tokens.add(count, model=self._name)
        if piece.drafted.passes:
            self._metrics.passes.add(piece.drafted.passes, model=self._name)
            self._metrics.drafted_tokens.add(piece.drafted.drafted, model=self._name)
            self._metrics.accepted_tokens.add(piece.drafted.accepted, model=self._name)
        if job.last is None:
            self._metrics.first_token.observe(now - job.asked, model=self._name)
        else:
            self._metrics.between_tokens.observe((now - job.last) / count, count, model=self._name)
        job.last = now


def _piece(job: Job, stepped: Stepped, slot: int, now: float) -> Piece:
    """What a step added to the text in a slot, up to its end."""
    text, tokens = "", []
    for column, token in enumerate(stepped.tokens[slot].tolist()):
        if token < 0 or job.transcript.ended:
            break
        text += job.transcript.push(token)
        tokens.append(_token(token, job, stepped, slot, column))
    drafts = stepped.drafts
    drafted = Drafted()
    if drafts is not None:
        passes, proposed, accepted = (int(each[slot]) for each in drafts)
        drafted = Drafted(passes, proposed, accepted, written=int((stepped.tokens[slot] >= 0).sum()))
    return Piece(job.index, text, tokens, job.transcript.ended, now, drafted)


def _token(token: int, job: Job, stepped: Stepped, slot: int, column: int) -> Token:
    told, wanted = stepped.log_probs, job.options.log_probs
    if told is None or wanted is None:
        return Token(token)
    ids, values = told.tokens[slot, column, :wanted], told.values[slot, column, :wanted]
    return Token(
        token, float(told.chosen[slot, column]), dict(zip(ids.tolist(), values.tolist(), strict=True))
    )
