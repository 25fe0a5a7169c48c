"""Fixtures of the tests of generation."""

from dataclasses import replace

import jax
import pytest

from ragjax.config import Decoding
from ragjax.model import Model
from ragjax.models.decoder import init_params

GREEDY = Decoding(max_new_tokens=12, stop_at_eos=False)
DRAWN = replace(GREEDY, temperature=1.3, seed=7)
REQUESTS = [
    ([5], GREEDY),
    (list(range(20)), replace(DRAWN, top_k=20)),
    ([9, 9, 9, 4], replace(GREEDY, repetition_penalty=1.7)),
    ([1, 2, 3], replace(DRAWN, top_p=0.8, seed=3, max_new_tokens=9)),
    (list(range(40, 73)), replace(DRAWN, min_p=0.05, repetition_penalty=1.2)),
    ([7, 8], replace(GREEDY, max_new_tokens=1)),
    (list(range(50)), replace(GREEDY, stop_tokens=tuple(range(0, 300, 3)), log_probs=2)),
    ([250] * 8, replace(DRAWN, log_probs=0)),
]
"""Prompts of all lengths with options of all kinds."""


@pytest.fixture
def compiled():
    """Counts what XLA compiles."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def shaken():
    """Makes a model that agrees with another often, and not always."""

    def make(model, by):
        keys = iter(jax.random.split(jax.random.key(8), 1000))
        params = jax.tree.map(lambda x: x + by * jax.random.normal(next(keys), x.shape), model.params)
        return Model(model.config, params)

    return make


@pytest.fixture(scope="session")
def teacher(tiny_config):
    """A model with shared keys and a local window."""
    config = replace(tiny_config, kv_heads=2, windows=(0, 9), layers=2)
    return Model(config, init_params(config, 1))


@pytest.fixture(scope="session")
def near(teacher, shaken):
    """A draft of it that is often right, and not always."""
    return shaken(teacher, 0.03)


@pytest.fixture(scope="session")
def asked():
    """Prompts of all lengths with options of all kinds."""
    return REQUESTS


@pytest.fixture(scope="session")
def served():
    """Lets some of `asked` take a slot as soon as one is free; gives their tokens, and log-probs of those."""

    def run(slots, order, most=1):
        waiting, taken, written = list(order), {}, {number: [] for number in order}
        told = {number: [] for number in order}
        while waiting or taken:
            for slot in range(slots.count):
                if slot not in taken and waiting:
                    taken[slot] = waiting.pop(0)
                    slots.join(slot, *REQUESTS[taken[slot]], row=taken[slot])
            stepped = slots.step(most)
            for slot, number in list(taken.items()):
                options, new = REQUESTS[number][1], []
                for token in stepped.tokens[slot].tolist():
                    # The device knows only so many ends, and may go on behind others.
                    if token < 0 or (new and new[-1] in options.stop_tokens):
                        break
                    new.append(token)
                written[number] += new
                if stepped.log_probs is not None:
                    told[number] += stepped.log_probs.chosen[slot, : len(new)].tolist()
                if (
                    len(written[number]) == options.max_new_tokens
                    or written[number][-1] in options.stop_tokens
                ):
                    slots.leave(slot)
                    del taken[slot]
        return written, told

    return run
