import jax.numpy as jnp
import numpy as np

from ragjax.distillation.hidden import hidden_mse, uniform_pairs


def test_pairs_end_with_the_last_layer_and_split_the_teacher_evenly():
    assert uniform_pairs(6, 12) == (1, 3, 5, 7, 9, 11)
    assert uniform_pairs(4, 4) == (0, 1, 2, 3)
    assert uniform_pairs(1, 5) == (4,)
    assert uniform_pairs(4, 6) == (1, 2, 4, 5)


def test_the_loss_is_the_weighted_mean_of_squares():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(4, 3, 4, 5))
    weights = rng.random((3, 4))
    weights /= weights.sum()
    expected = sum(((student[i] - teacher[j]) ** 2).mean(-1) * weights / 2 for i, j in ((0, 1), (1, 3))).sum()
    found = hidden_mse(student.astype("f"), teacher.astype("f"), weights.astype("f"), pairs=(1, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_half_precision_states_are_compared_in_float32():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(2, 1, 3, 64)), jnp.bfloat16) for _ in range(2))
    weights = np.full((1, 3), 1 / 3, np.float32)
    exact = np.square(np.asarray(student, np.float64) - np.asarray(teacher, np.float64)).mean()
    found = hidden_mse(student, teacher, weights, pairs=(0, 1))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5)
