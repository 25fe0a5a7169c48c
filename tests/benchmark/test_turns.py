"""Who has a turn when, and what is timed of it."""

import itertools
from dataclasses import replace

import pytest

from ragjax.benchmark import bench, measure, turns
from ragjax.benchmark.bandwidth import Reader
from ragjax.benchmark.memory import free_memory
from ragjax.benchmark.turns import Round, Turn, take_turns
from ragjax.config import Bench
from ragjax.errors import InputError
from ragjax.interchange.onnx import in_onnxruntime

OPTIONS = Bench(batch=(1, 2), prompt_tokens=8, new_tokens=4, rounds=2)


@pytest.fixture(scope="module")
def reader():
    return Reader(64)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(turns, "_REST", 0)


def test_models_take_turns_forwards_and_backwards(tiny_model, tiny_byte_model, reader, monkeypatch):
    seen, seconds = [], itertools.count(1)

    def turn(model, prompts, new_tokens, clock):
        # Of two vocabularies, 300 and 257, only the tokens that both have.
        assert prompts.shape[1] == 60
        assert prompts.max() < 257
        seen.append((len(prompts), model))
        return Turn(next(seconds), 1)

    monkeypatch.setattr(turns, "_take_turn", turn)
    clock = itertools.count()
    a, b = tiny_model, tiny_byte_model
    options = replace(OPTIONS, prompt_tokens=60)
    found = list(take_turns([a, b], options, reader=reader, clock=lambda: next(clock)))
    untimed, first, second = seen[:4], seen[4:8], seen[8:]
    assert untimed == [(1, a), (2, a), (1, b), (2, b)]
    assert first == [(1, a), (1, b), (2, a), (2, b)]
    assert second == [(1, b), (1, a), (2, b), (2, a)]
    # Whatever the order was, each turn is told in its model's place.
    assert [[turn.first for turn in each.turns[1]] for each in found] == [[5, 6], [10, 9]]
    assert [each.bandwidth for each in found] == [3 * reader.bytes] * 2


@pytest.fixture(scope="module")
def pair(tiny_byte_model):
    return tiny_byte_model, in_onnxruntime(tiny_byte_model, threads=1)


def test_a_turn_writes_and_is_timed_twice(pair, reader):
    ticks = itertools.count()
    clock = (float(tick * tick) for tick in ticks)
    options = Bench(batch=(2,), prompt_tokens=8, new_tokens=4, rounds=1)
    [found] = take_turns(pair, options, reader=reader, clock=lambda: next(clock))
    # Six ticks of untimed turns, two of memory, then three a turn: squares of 8, 9, 10 and so on.
    assert found == Round(3 * reader.bytes / 13, {2: (Turn(17, 19), Turn(23, 25))})


def test_a_report_has_figures_of_every_model_and_batch(pair, reader):
    lines, (one, other) = [], pair
    found = bench(
        [("one", one), ("other", other), ("one", one)], OPTIONS, reader=reader, progress=lines.append
    )
    assert [each.model for each in found.models] == ["one", "other", "one"]
    assert [each.engine for each in found.models] == ["jax", "onnx", "jax"]
    assert [each.parameters for each in found.models] == [one.parameters] * 3
    for told in found.models:
        assert list(told.batch) == [1, 2]
        assert all(each.share_of_bandwidth > 0 for each in told.batch.values())
    first = found.models[0].batch[2]
    assert (first.prefill_ratio, first.decode_ratio) == (1.0, 1.0)
    assert len(lines) == 2
    assert lines[0].startswith("round 1 of 2: batch 1 ")


def test_all_models_without_room_are_named(tiny_model, tiny_byte_model):
    with pytest.raises(InputError, match=r"(?s)60 and new_tokens 5 make 65.*small has 64.*other has 64"):
        bench([("small", tiny_model), ("other", tiny_byte_model)], Bench(prompt_tokens=60, new_tokens=5))


@pytest.mark.parametrize(("new", "prompt"), [(60, 4), (63, 1)])
def test_prompts_are_as_long_as_there_is_room_for(tiny_byte_model, reader, new, prompt):
    options = Bench(batch=(1,), new_tokens=new, rounds=1)
    assert bench([("one", tiny_byte_model)], options, reader=reader).options.prompt_tokens == prompt


def test_without_room_for_a_prompt_the_model_is_named(tiny_byte_model):
    with pytest.raises(InputError, match=r"(?s)1 and new_tokens 64 make 65.*one has 64"):
        bench([("one", tiny_byte_model)], Bench())


def test_a_batch_that_memory_cannot_hold_is_refused_before_it_is_tried(tiny_byte_model, monkeypatch):
    # Two layers, keys and values of width 32 for 12 tokens, and 257 scores, of 4 bytes each.
    texts = 1000 * (12 * 2 * 2 * 32 + 257) * 4
    options = Bench(batch=(1, 1000), prompt_tokens=8, new_tokens=4)
    monkeypatch.setattr(measure, "free_memory", lambda model: texts - 1)
    with pytest.raises(InputError, match=r"(?s)1000 texts at once.*smaller batch.*one needs.*other needs"):
        bench([("one", tiny_byte_model), ("other", tiny_byte_model)], options)
    monkeypatch.setattr(measure, "free_memory", lambda model: texts)
    monkeypatch.setattr(measure, "take_turns", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench([("one", tiny_byte_model)], options, reader=object())


def test_free_memory_is_what_the_system_says(tiny_byte_model):
    free = free_memory(tiny_byte_model)
    assert free is None or 0 < free < 1 << 50
