import jax.numpy as jnp
import numpy as np

from ragjax.quantization.table import quantized_table

TABLE = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32) * np.linspace(0, 1, 256)[:, None]


def test_rows_are_rounded_each_by_its_largest():
    made = quantized_table(jnp.asarray(TABLE, jnp.float32))
    step = np.abs(TABLE).max(1, keepdims=True) / 127
    assert (np.abs(np.asarray(made.whole()) - TABLE) <= 0.57 * step + 1e-7).all()
    assert not np.asarray(made.whole())[0].any()
    tokens = np.array([[3, 255], [0, 3]])
    np.testing.assert_array_equal(made.rows(tokens), np.asarray(made.whole())[tokens])


def test_scores_are_those_of_the_floats():
    made, hidden = (
        quantized_table(jnp.asarray(TABLE, jnp.float32)),
        np.random.default_rng(1).normal(size=(2, 3, 16)),
    )
    expected = hidden @ np.asarray(made.whole(), np.float64).T
    np.testing.assert_allclose(made.scores(jnp.asarray(hidden, jnp.float32)), expected, atol=1e-5)
