import pytest

from ragjax.errors import InputError
from ragjax.evaluation.speed import forward_speed, summarize


def test_ratios_are_paired_round_by_round():
    # The machine was four times slower in the second round, and the pair still tells 2.
    found = summarize({"teacher": [2.0, 8.0, 2.0], "student": [1.0, 4.0, 2.5]}, tokens=100)
    assert found["teacher"].ratio == 1
    assert found["student"].ratio == 2
    assert found["student"].tokens_per_second == pytest.approx(40)
    assert found["student"].rounds == (100, 25, 40)


def test_every_model_is_measured_in_every_round(tiny_model, tiny_byte_model):
    found = forward_speed({"a": tiny_model, "b": tiny_byte_model}, batch=2, length=16, rounds=3)
    assert list(found) == ["a", "b"]
    assert all(len(speed.rounds) == 3 and speed.tokens_per_second > 0 for speed in found.values())


def test_a_sequence_without_positions_is_refused(tiny_model):
    with pytest.raises(InputError, match=r"length 65.*small 64"):
        forward_speed({"small": tiny_model}, batch=1, length=65)
