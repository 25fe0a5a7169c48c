"""Medians, and ratios paired within a round."""

import pytest

from ragjax.benchmark.figures import figures
from ragjax.benchmark.turns import Round, Turn
from ragjax.benchmark.weights import WeightBytes
from ragjax.config import Bench

OPTIONS = Bench(batch=(2,), prompt_tokens=10, new_tokens=5, rounds=3)
ROUNDS = [
    Round(1000.0, {2: (Turn(2.0, 4.0), Turn(1.0, 1.0))}),
    # Four times slower, memory too: pairs tell the same.
    Round(250.0, {2: (Turn(8.0, 16.0), Turn(4.0, 4.0))}),
    Round(1000.0, {2: (Turn(2.0, 4.0), Turn(4.0, 2.0))}),
]


def test_ratios_are_paired_and_speeds_are_medians():
    found = figures(ROUNDS, 1, 2, WeightBytes(90, 5), OPTIONS)
    assert (found.prefill_ratio, found.decode_ratio) == (2.0, 4.0)
    assert found.first_token_seconds == 4.0
    assert found.prefill_tokens_per_second == 2 * 10 / 4.0
    # Four steps after the first token, two sequences, two seconds.
    assert found.decode_tokens_per_second == 4.0


def test_bandwidth_is_what_steps_read_over_what_the_same_round_allows():
    found = figures(ROUNDS, 1, 2, WeightBytes(90, 5), OPTIONS)
    assert found.bytes_per_token == 50.0
    # 100 bytes a step, 4 steps: 400 of 1000, 100 of 250, 200 of 1000 bytes a second.
    assert found.share_of_bandwidth == pytest.approx(0.4)


def test_the_first_is_once_as_fast_as_itself():
    found = figures(ROUNDS, 0, 2, WeightBytes(1, 0), OPTIONS)
    assert (found.prefill_ratio, found.decode_ratio) == (1.0, 1.0)
