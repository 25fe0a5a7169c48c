"""Requests that join and leave a running batch in onnxruntime write what each writes alone."""

from dataclasses import replace

import pytest

from ragjax.config import Decoding
from ragjax.errors import InputError
from ragjax.generation.continuation import continuations
from ragjax.generation.onnx import OnnxSlots
from ragjax.interchange.onnx import in_onnxruntime

GREEDY = Decoding(max_new_tokens=12, stop_at_eos=False)
DRAWN = replace(GREEDY, temperature=1.3, seed=7)
ASKED = [
    ([5], GREEDY),
    (list(range(20)), replace(DRAWN, top_k=20)),
    ([9, 9, 9, 4], replace(GREEDY, repetition_penalty=1.7)),
    ([1, 2, 3], replace(DRAWN, top_p=0.8, seed=3, max_new_tokens=9)),
    (list(range(40, 73)), replace(DRAWN, min_p=0.05, repetition_penalty=1.2)),
    ([7, 8], replace(GREEDY, max_new_tokens=1)),
    (list(range(50)), replace(GREEDY, stop_tokens=tuple(range(0, 300, 3)), log_probs=2)),
]
"""Prompts of all lengths with options of all kinds."""


@pytest.fixture(scope="module")
def there(tiny_model):
    return in_onnxruntime(tiny_model, threads=1)


@pytest.fixture(scope="module")
def slots(there):
    made = OnnxSlots(there, count=3, room=64)
    made.warm()
    return made


@pytest.fixture(scope="module")
def alone(there):
    """Each request by itself, which tests/generation/onnx/test_writer.py holds against JAX."""
    return [
        continuations(there, [prompt], options, rows=[number])[0]
        for number, (prompt, options) in enumerate(ASKED)
    ]


def served(slots, order, most=1):
    """The tokens of requests that take a slot as soon as one is free, each with its log-probs."""
    waiting, taken, written = list(order), {}, {number: [] for number in order}
    told = {number: [] for number in order}
    while waiting or taken:
        for slot in range(slots.count):
            if slot not in taken and waiting:
                taken[slot] = waiting.pop(0)
                slots.join(slot, *ASKED[taken[slot]], row=taken[slot])
        stepped = slots.step(most)
        for slot, number in list(taken.items()):
            new = [token for token in stepped.tokens[slot].tolist() if token >= 0]
            written[number] += new
            if stepped.log_probs is not None:
                told[number] += stepped.log_probs.chosen[slot, : len(new)].tolist()
            options = ASKED[number][1]
            if len(written[number]) == options.max_new_tokens or written[number][-1] in options.stop_tokens:
                slots.leave(slot)
                del taken[slot]
    return written, told


@pytest.mark.parametrize(("order", "most"), [(range(7), 1), ((6, 1, 0, 4, 3, 5, 2), 5)])
def test_each_request_writes_what_it_writes_alone(slots, alone, order, most, compiled):
    written, told = served(slots, order, most)
    assert compiled == []
    for number in order:
        assert written[number] == alone[number].tokens.tolist(), number
        if alone[number].log_probs is not None:
            assert told[number] == pytest.approx(alone[number].log_probs.tolist(), abs=1e-4)


def test_a_slot_that_is_left_early_serves_the_next_unharmed(slots, alone):
    slots.join(0, *ASKED[4], row=4)
    slots.join(2, *ASKED[1], row=1)
    slots.step()
    slots.step(4)
    slots.leave(0)
    slots.leave(2)
    written, _ = served(slots, [2, 0])
    assert written[2] == alone[2].tokens.tolist()
    slots.join(1, *ASKED[0])
    slots.leave(1)
    assert (slots.step().tokens == -1).all()


def test_more_room_than_positions_is_refused(there):
    with pytest.raises(InputError, match="the model has 64 positions"):
        OnnxSlots(there, room=65)
