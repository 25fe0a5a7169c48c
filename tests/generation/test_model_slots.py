"""Requests that join and leave a running batch write what each writes alone."""

from dataclasses import replace

import jax
import pytest

from ragjax.config import Decoding, Mesh
from ragjax.errors import InputError
from ragjax.generation.continuation import continuations
from ragjax.generation.model_slots import ModelSlots
from ragjax.generation.request import ends_of
from ragjax.parallel.mesh import make_mesh

GREEDY = Decoding(max_new_tokens=12, stop_at_eos=False)
DRAWN = replace(GREEDY, temperature=1.3, seed=7)
ASKED = [
    ([5], GREEDY),
    (list(range(20)), replace(DRAWN, top_k=20)),
    ([9, 9, 9, 4], replace(GREEDY, repetition_penalty=1.7)),
    ([1, 2, 3], replace(DRAWN, top_p=0.8, seed=3, max_new_tokens=3)),
    (list(range(40, 73)), replace(DRAWN, min_p=0.05, repetition_penalty=1.2)),
    ([7, 8], replace(GREEDY, max_new_tokens=1)),
    (list(range(50)), replace(GREEDY, stop_tokens=tuple(range(0, 300, 3)), log_probs=2)),
    ([250] * 8, replace(DRAWN, log_probs=0)),
]
"""Prompts of all lengths with options of all kinds."""


@pytest.fixture(scope="module")
def slots(tiny_model):
    made = ModelSlots(tiny_model, count=3, room=64)
    made.warm()
    return made


def alone(model, number):
    prompt, options = ASKED[number]
    [told] = continuations(model, [prompt], options, rows=[number])
    return told


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


@pytest.mark.parametrize(("order", "most"), [(range(8), 1), ((6, 1, 0, 7, 4, 3, 5, 2), 5)])
def test_each_request_writes_what_it_writes_alone(slots, tiny_model, order, most, compiled):
    written, told = served(slots, order, most)
    assert compiled == []
    for number in order:
        expected = alone(tiny_model, number)
        assert written[number] == expected.tokens.tolist(), number
        if expected.log_probs is not None:
            assert told[number] == pytest.approx(expected.log_probs.tolist(), abs=1e-5)


def test_the_likeliest_tokens_are_told_in_place_of_each(slots, tiny_model):
    expected = alone(tiny_model, 6)
    slots.join(1, *ASKED[6], row=6)
    first = slots.step()
    slots.leave(1)
    [best, second] = expected.alternatives[0].items()
    assert first.log_probs.tokens[1, 0, :2].tolist() == [best[0], second[0]]
    assert first.log_probs.values[1, 0, :2].tolist() == pytest.approx([best[1], second[1]], abs=1e-5)


def test_a_slot_that_is_left_early_serves_the_next_unharmed(slots, tiny_model):
    slots.join(0, *ASKED[4], row=4)
    slots.join(2, *ASKED[1], row=1)
    slots.step()
    slots.step(4)
    slots.leave(0)
    slots.leave(2)
    written, _ = served(slots, [2, 0])
    assert written[2] == alone(tiny_model, 2).tokens.tolist()
    assert (slots.step().tokens == -1).all()


def test_a_slot_may_be_left_before_its_first_token(slots):
    slots.join(1, *ASKED[0])
    slots.leave(1)
    assert (slots.step().tokens == -1).all()


def test_a_model_ends_at_its_own_end_and_at_what_is_asked_for(tiny_byte_model):
    asked = replace(GREEDY, stop_tokens=(5, 256))
    assert ends_of(tiny_byte_model, replace(asked, stop_at_eos=True)) == (256, 5)
    assert ends_of(tiny_byte_model, asked) == (5, 256)


@pytest.mark.slow
def test_slots_may_lie_on_a_mesh(tiny_model):
    mesh = make_mesh(Mesh(data=2, tensor=2), jax.devices()[:4])
    slots = ModelSlots(tiny_model, count=2, room=32, mesh=mesh)
    written, _ = served(slots, [0, 2, 3])
    for number, tokens in written.items():
        assert tokens == alone(tiny_model, number).tokens.tolist()


def test_more_room_than_positions_is_refused(tiny_model):
    with pytest.raises(InputError, match="the model has 64 positions"):
        ModelSlots(tiny_model, room=65)
