"""Schedules against their closed forms."""

import jax
import numpy as np
import pytest

from ragjax.config import Sparsity
from ragjax.errors import InputError
from ragjax.sparsity.schedules import SPARSITY_SCHEDULES, schedule


def curve(when, steps):
    return np.asarray(jax.jit(jax.vmap(when.share))(np.arange(steps)))


def updates(when, steps):
    return np.flatnonzero(jax.jit(jax.vmap(when.is_update))(np.arange(steps))).tolist()


def test_cubic_is_the_formula_of_zhu_and_gupta():
    when = schedule(Sparsity(target=0.8, start=10, stop=40, every=7), 100)
    step = np.arange(100)
    # s_t = s_f + (s_i - s_f)(1 - (t - t0) / (n dt))^3 with s_i = 0, held on both sides.
    expected = 0.8 + (0 - 0.8) * (1 - np.clip((step - 10) / 30, 0, 1)) ** 3
    np.testing.assert_allclose(0.8 * curve(when, 100), expected, atol=1e-6)
    assert updates(when, 100) == [10, 17, 24, 31, 38, 40]


def test_one_shot_reaches_the_target_at_its_start_and_updates_once():
    when = schedule(Sparsity(target=0.5, schedule="one_shot", start=20, stop=60), 100)
    np.testing.assert_array_equal(curve(when, 100), np.arange(100) >= 20)
    assert updates(when, 100) == [20]


@pytest.mark.parametrize("name", SPARSITY_SCHEDULES)
def test_every_schedule_rises_from_0_to_exactly_1(name):
    shares = curve(schedule(Sparsity(target=0.5, schedule=name, start=3, stop=33), 50), 50)
    assert (shares[:3] == 0).all()
    assert (shares[33:] == 1).all()
    assert (np.diff(shares) >= 0).all()


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


@pytest.mark.parametrize(("start", "stop", "every"), [(3, 17, 5), (0, 20, 4), (7, 7, 1), (2, 9, 30)])
def test_an_update_missed_in_skipped_steps_is_due_at_the_next(start, stop, every):
    when = schedule(Sparsity(target=0.5, start=start, stop=stop, every=every), 25)
    at = set(updates(when, 25))
    for since in range(25):
        for step in range(since, 25):
            assert bool(when.is_update(step, since)) == any(s in at for s in range(since, step + 1))
