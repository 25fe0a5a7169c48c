import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.distillation.ramp import at_step, number_at


@pytest.mark.parametrize("ramp", [0.3, (0.3,), (0.3, 0.3)])
def test_what_is_constant_is_a_plain_number(ramp):
    found = at_step(ramp, jnp.int32(5), 10)
    assert isinstance(found, float)
    assert found == 0.3


def test_a_ramp_passes_its_numbers_at_equal_distances_along_straight_lines():
    found = [float(at_step((0.0, 1.0, 0.5), step, 9)) for step in range(9)]
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625, 0.5], rtol=1e-6)


def test_the_first_step_has_the_first_number_and_the_last_step_the_last():
    for steps in (2, 5, 1000):
        assert float(at_step((2.0, 7.0), 0, steps)) == 2
        assert float(at_step((2.0, 7.0), steps - 1, steps)) == 7
        assert float(at_step((2.0, 7.0), steps + 3, steps)) == 7
    assert float(at_step((2.0, 7.0), 0, 1)) == 2


def test_a_step_that_is_traced_gives_the_same():
    traced = jax.jit(lambda step: at_step((0.0, 1.0, 0.5), step, 9))
    assert [float(traced(step)) for step in range(9)] == [
        float(at_step((0.0, 1.0, 0.5), step, 9)) for step in range(9)
    ]


@pytest.mark.parametrize("ramp", [0.3, (0.5,), (2.0, 7.0), (0.0, 1.0, 0.5)])
def test_the_host_computes_the_same(ramp):
    for steps in (1, 2, 9):
        for step in range(steps + 2):
            assert number_at(ramp, step, steps) == pytest.approx(float(at_step(ramp, step, steps)), rel=1e-6)
