"""Requests that join and leave a running batch, in JAX or onnxruntime, write what each writes alone."""

from typing import NamedTuple

import jax
import pytest

from ragjax.config import Decoding, Mesh
from ragjax.errors import InputError
from ragjax.generation.continuation import continuations
from ragjax.generation.model_slots import ModelSlots
from ragjax.generation.onnx import OnnxSlots
from ragjax.generation.request import ends_of
from ragjax.interchange.onnx import in_onnxruntime
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel
from ragjax.parallel.mesh import make_mesh


class Engine(NamedTuple):
    model: Model | OnnxModel
    slots: type
    near: float
    """How far log-probabilities may lie apart."""

    def alone(self, asked, number):
        """What the model writes of one of the requests by itself."""
        prompt, options = asked[number]
        [told] = continuations(self.model, [prompt], options, rows=[number])
        return told


@pytest.fixture(scope="module", params=["JAX", "onnxruntime"])
def engine(request, tiny_model):
    if request.param == "JAX":
        return Engine(tiny_model, ModelSlots, 1e-5)
    return Engine(in_onnxruntime(tiny_model, threads=1), OnnxSlots, 1e-4)


@pytest.fixture(scope="module")
def slots(engine):
    made = engine.slots(engine.model, count=3, room=64)
    made.warm()
    return made


@pytest.mark.parametrize(("order", "most"), [(range(8), 1), ((6, 1, 0, 7, 4, 3, 5, 2), 5)])
def test_each_request_writes_what_it_writes_alone(engine, slots, asked, served, order, most, compiled):
    written, told = served(slots, order, most)
    assert compiled == []
    for number in order:
        expected = engine.alone(asked, number)
        assert written[number] == expected.tokens.tolist(), number
        if expected.log_probs is not None:
            assert told[number] == pytest.approx(expected.log_probs.tolist(), abs=engine.near)


def test_the_likeliest_tokens_are_told_in_place_of_each(engine, slots, asked):
    expected = engine.alone(asked, 6)
    slots.join(1, *asked[6], row=6)
    first = slots.step()
    slots.leave(1)
    [best, second] = expected.alternatives[0].items()
    assert first.log_probs.tokens[1, 0, :2].tolist() == [best[0], second[0]]
    assert first.log_probs.values[1, 0, :2].tolist() == pytest.approx([best[1], second[1]], abs=engine.near)


def test_a_slot_that_is_left_early_serves_the_next_unharmed(engine, slots, asked, served):
    slots.join(0, *asked[4], row=4)
    slots.join(2, *asked[1], row=1)
    slots.step()
    slots.step(4)
    slots.leave(0)
    slots.leave(2)
    written, _ = served(slots, [2, 0])
    assert written[2] == engine.alone(asked, 2).tokens.tolist()
    assert (slots.step().tokens == -1).all()


def test_a_slot_may_be_left_before_its_first_token(slots, asked):
    slots.join(1, *asked[0])
    slots.leave(1)
    assert (slots.step().tokens == -1).all()


def test_more_room_than_positions_is_refused(engine):
    with pytest.raises(InputError, match="the model has 64 positions"):
        engine.slots(engine.model, room=65)


def test_no_prompt_that_leaves_room_for_one_token_compiles_anything(tiny_model, compiled):
    # Rounded up to a power of two it is longer than one that leaves room for two.
    slots = ModelSlots(tiny_model, count=1, room=10)
    slots.warm()
    compiled.clear()
    slots.join(0, [1] * 9, Decoding(max_new_tokens=1))
    assert slots.step().tokens[0, 0] >= 0
    assert compiled == []


def test_a_model_ends_at_its_own_end_and_at_what_is_asked_for(tiny_byte_model):
    ends = {"stop_tokens": (5, 256)}
    assert ends_of(tiny_byte_model, Decoding(**ends)) == (256, 5)
    assert ends_of(tiny_byte_model, Decoding(stop_at_eos=False, **ends)) == (5, 256)


@pytest.mark.slow
def test_slots_may_lie_on_a_mesh(tiny_model, asked, served):
    mesh = make_mesh(Mesh(data=2, tensor=2), jax.devices()[:4])
    slots = ModelSlots(tiny_model, count=2, room=32, mesh=mesh)
    written, _ = served(slots, [0, 2, 3])
    for number, tokens in written.items():
        assert tokens == Engine(tiny_model, ModelSlots, 0).alone(asked, number).tokens.tolist()
