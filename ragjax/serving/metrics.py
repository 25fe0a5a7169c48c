"""Counters, gauges and histograms in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number that only grows, for each set of labels."""

    kind = "counter"

    def __init__(self, name: str, purpose: str):
        self.name, self.purpose = name, purpose
        self._values: dict[_Labels, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, amount: float = 1, **labels: str) -> None:
        """Adds to the number of these labels."""
        with self._lock:
            self._values[tuple(labels.items())] += amount

    def samples(self) -> Iterator[str]:
        """Its lines."""
        with self._lock:
            values = list(self._values.items())
        for labels, value in values:
            yield _line(self.name, labels, value)


class Gauge:
    """A number that is asked for when it is told."""

    kind = "gauge"

    def __init__(self, name: str, purpose: str):
        self.name, self.purpose = name, purpose
        self._sources: list[tuple[_Labels, Callable[[], float]]] = []

    def follow(self, source: Callable[[], float], **labels: str) -> None:
        """Tells what `source` says, under these labels."""
        self._sources.append((tuple(labels.items()), source))

    def samples(self) -> Iterator[str]:
        """Its lines."""
        for labels, source in self._sources:
            yield _line(self.name, labels, source())


class Histogram:
    """How many of the observed values lie below each of several bounds."""

    kind = "histogram"

    def __init__(self, name: str, purpose: str, bounds: Iterable[float]):
        self.name, self.purpose = name, purpose
        self._bounds = tuple(bounds)
        self._counts: dict[_Labels, list[int]] = {}
        self._sums: dict[_Labels, float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, times: int = 1, **labels: str) -> None:
        """Counts a value, so many times."""
        key = tuple(labels.items())
        with self._lock:
            counts = self._counts.setdefault(key, [0] * (len(self._bounds) + 1))
            counts[bisect_left(self._bounds, value)] += times
            self._sums[key] = self._sums.get(key, 0.0) + value * times

    def samples(self) -> Iterator[str]:
        """Its lines."""
        with self._lock:
            found = [(key, list(counts), self._sums[key]) for key, counts in self._counts.items()]
        for labels, counts, total in found:
            below = 0
            for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
                below += count
                edge = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield _line(f"{self.name}_bucket", (*labels, ("le", edge)), below)
            yield _line(f"{self.name}_sum", labels, total)
            yield _line(f"{self.name}_count", labels, below)


class Metrics:
    """All that is told of a server."""

    def __init__(self) -> None:
        self.requests = Counter("ragjax_requests_total", "Requests by what became of them.")
        self.prompt_tokens = Counter("ragjax_prompt_tokens_total", "Tokens of prompts that were read.")
        self.generated_tokens = Counter("ragjax_generated_tokens_total", "Tokens that were written.")
        self.passes = Counter("ragjax_draft_passes_total", "Passes of a model over the draft of a text.")
        self.drafted_tokens = Counter("ragjax_drafted_tokens_total", "Tokens that a draft proposed.")
        self.accepted_tokens = Counter("ragjax_accepted_tokens_total", "Drafted tokens that were kept.")
        self.waiting = Gauge("ragjax_queue_length", "Texts that wait for a slot.")
        self.slots = Gauge("ragjax_slots", "Slots.")
        self.busy = Gauge("ragjax_slots_busy", "Slots that are taken.")
        self.first_token = Histogram(
            "ragjax_time_to_first_token_seconds", "From a request to its first token.",
            (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )  # fmt: skip
        self.between_tokens = Histogram(
            "ragjax_inter_token_seconds", "From one token of a text to the next.",
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
        )  # fmt: skip

    def text(self) -> str:
        """The page that Prometheus reads."""
        lines = []
        for each in vars(self).values():
            lines += [f"# HELP {each.name} {each.purpose}", f"# TYPE {each.name} {each.kind}"]
            lines += each.samples()
        return "\n".join(lines) + "\n"


def _line(name: str, labels: _Labels, value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{told}}} {value:.17g}" if told else f"{name} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
