"""Requests that join and leave a running batch in onnxruntime write what each writes alone."""

import pytest

from ragjax.errors import InputError
from ragjax.generation.continuation import continuations
from ragjax.generation.onnx import OnnxSlots
from ragjax.interchange.onnx import in_onnxruntime


@pytest.fixture(scope="module")
def there(tiny_model):
    return in_onnxruntime(tiny_model, threads=1)


@pytest.fixture(scope="module")
def slots(there):
    made = OnnxSlots(there, count=3, room=64)
    made.warm()
    return made


@pytest.fixture(scope="module")
def alone(there, asked):
    """Each request by itself, which tests/generation/onnx/test_writer.py holds against JAX."""
    return [
        continuations(there, [prompt], options, rows=[number])[0]
        for number, (prompt, options) in enumerate(asked)
    ]


@pytest.mark.parametrize(("order", "most"), [(range(8), 1), ((6, 1, 0, 7, 4, 3, 5, 2), 5)])
def test_each_request_writes_what_it_writes_alone(slots, served, alone, order, most, compiled):
    written, told = served(slots, order, most)
    assert compiled == []
    for number in order:
        assert written[number] == alone[number].tokens.tolist(), number
        if alone[number].log_probs is not None:
            assert told[number] == pytest.approx(alone[number].log_probs.tolist(), abs=1e-4)


def test_a_slot_that_is_left_early_serves_the_next_unharmed(slots, asked, served, alone):
    slots.join(0, *asked[4], row=4)
    slots.join(2, *asked[1], row=1)
    slots.step()
    slots.step(4)
    slots.leave(0)
    slots.leave(2)
    written, _ = served(slots, [2, 0])
    assert written[2] == alone[2].tokens.tolist()
    slots.join(1, *asked[0])
    slots.leave(1)
    assert (slots.step().tokens == -1).all()


def test_more_room_than_positions_is_refused(there):
    with pytest.raises(InputError, match="the model has 64 positions"):
        OnnxSlots(there, room=65)
