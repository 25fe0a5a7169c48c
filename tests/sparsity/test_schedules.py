"""Schedules against their closed forms."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ragjax.config import Sparsity
from ragjax.errors import InputError
from ragjax.sparsity.schedules import SPARSITY_SCHEDULES, schedule

# Share of the target by share of time, as the papers write it.
CLOSED_FORMS = {
    "one_shot": lambda t: np.ones_like(t),
    "periodic": lambda t: np.ones_like(t),
    "cubic": lambda t: (0.8 + (0 - 0.8) * (1 - t) ** 3) / 0.8,
    "polynomial": lambda t: 1 - (1 - t) ** 1.7,
    "cosine": lambda t: 0.5 - 0.5 * np.cos(np.pi * t),
    "geometric": lambda t: (1 - 0.2**t) / 0.8,
}


def curve(when, steps):
    return np.asarray(jax.jit(jax.vmap(when.share))(np.arange(steps)))


def updates(when, steps):
    return np.flatnonzero(jax.jit(jax.vmap(when.is_update))(np.arange(steps))).tolist()


@pytest.mark.parametrize("name", SPARSITY_SCHEDULES)
def test_every_schedule_is_its_closed_form(name):
    when = schedule(Sparsity(target=0.8, schedule=name, power=1.7, start=10, stop=40), 100)
    step = np.arange(100)
    expected = CLOSED_FORMS[name](np.clip((step - 10) / 30, 0, 1)) * (step >= 10)
    np.testing.assert_allclose(curve(when, 100), expected, atol=1e-6)


@pytest.mark.parametrize("name", SPARSITY_SCHEDULES)
def test_every_schedule_rises_from_0_to_exactly_1(name):
    shares = curve(schedule(Sparsity(target=0.5, schedule=name, start=3, stop=33), 50), 50)
    assert (shares[:3] == 0).all()
    assert (shares[33:] == 1).all()
    assert (np.diff(shares) >= 0).all()


def test_each_round_of_the_geometric_schedule_removes_the_same_share_of_what_is_left():
    when = schedule(Sparsity(target=0.8, schedule="geometric", stop=40, every=10), 50)
    left = 1 - 0.8 * curve(when, 41)[::10]
    np.testing.assert_allclose(left[1:] / left[:-1], 0.2**0.25, rtol=1e-5)


def test_updates_are_at_every_so_many_steps_and_at_the_stop():
    when = schedule(Sparsity(target=0.8, start=10, stop=40, every=7), 100)
    assert updates(when, 100) == [10, 17, 24, 31, 38, 40]
    assert [int(when.number(step)) for step in (10, 16, 17, 38, 40, 99)] == [0, 0, 1, 4, 4, 4]


def test_updates_may_go_on_after_the_stop():
    when = replace(schedule(Sparsity(target=0.8, start=10, stop=20, every=7), 100), last=40)
    assert updates(when, 100) == [10, 17, 20, 24, 31, 38]


def test_one_shot_reaches_the_target_at_its_start_and_updates_once():
    when = schedule(Sparsity(target=0.5, schedule="one_shot", start=20, stop=60), 100)
    np.testing.assert_array_equal(curve(when, 100), np.arange(100) >= 20)
    assert updates(when, 100) == [20]


def test_without_a_stop_the_target_is_reached_at_half_of_the_training():
    assert updates(schedule(Sparsity(target=0.5, every=20), 100), 100) == [0, 20, 40, 50]
    assert updates(schedule(Sparsity(target=0.5, start=80), 100), 100) == [80]
    assert updates(schedule(Sparsity(target=0.5), 1), 1) == [0]


def test_stop_at_the_start_prunes_once():
    when = schedule(Sparsity(target=0.5, start=4, stop=4), 10)
    np.testing.assert_array_equal(curve(when, 10), np.arange(10) >= 4)
    assert updates(when, 10) == [4]


@pytest.mark.parametrize(
    "config", [Sparsity(target=0.5, stop=100), Sparsity(target=0.5, schedule="one_shot", start=100)]
)
def test_a_target_beyond_the_training_is_refused(config):
    with pytest.raises(InputError, match="step 100, but the training has 100 steps"):
        schedule(config, 100)


@pytest.mark.parametrize(
    ("start", "stop", "every", "last"), [(3, 17, 5, 17), (0, 20, 4, 20), (7, 7, 1, 24), (2, 9, 30, 24)]
)
def test_an_update_missed_in_skipped_steps_is_due_at_the_next(start, stop, every, last):
    when = replace(schedule(Sparsity(target=0.5, start=start, stop=stop, every=every), 25), last=last)
    at = set(updates(when, 25))
    steps = [(since, step) for since in range(25) for step in range(since, 25)]
    found = jax.jit(jax.vmap(lambda pair: when.is_update(pair[1], pair[0])))(np.asarray(steps))
    assert found.tolist() == [any(s in at for s in range(since, step + 1)) for since, step in steps]


def test_all_the_time_has_passed_at_the_stop_however_long_it_was():
    spans = [1, 3, 49, 975, 1125, 99_999]
    reached = [
        float(jax.jit(schedule(Sparsity(0.5, start=150, stop=150 + span), 10**6).time)(150 + span))
        for span in spans
    ]
    assert reached == [1.0] * len(spans)
