"""SmoothQuant's divisors."""

import numpy as np
import pytest

from ragjax.quantization.smoothquant import smoothing

X = np.exp(np.random.default_rng(0).normal(size=20)).astype(np.float32)
W = np.exp(np.random.default_rng(1).normal(size=20)).astype(np.float32)


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 1.0])
def test_they_are_the_papers(strength):
    expected = X.astype(np.float64) ** strength / W.astype(np.float64) ** (1 - strength)
    np.testing.assert_allclose(smoothing(X, W, strength=strength), expected, rtol=1e-5)


def test_half_and_half_inputs_and_weights_come_out_alike():
    divisors = np.asarray(smoothing(X, W))
    np.testing.assert_allclose(X / divisors, W * divisors, rtol=1e-5)


def test_what_was_never_seen_or_is_not_read_is_left():
    x, w = X.copy(), W.copy()
    x[3] = w[4] = 0
    found = np.asarray(smoothing(x, w))
    assert found[3] == found[4] == 1
    np.testing.assert_allclose(np.delete(found, (3, 4)), np.delete(smoothing(X, W), (3, 4)))


def test_less_is_lost_of_what_a_large_input_hides():
    """Inputs rounded to 8 bits by the largest of their token, and weights by the largest of their output."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(64, 32)), rng.normal(size=(32, 16))
    x[:, 5] *= 100
    divisors = np.asarray(smoothing(np.abs(x).max(0), np.abs(w).max(1)))

    def lost(x, w):
        to_bits = [np.rint(v / step) * step for v, step in ((x, np.abs(x).max(1, keepdims=True) / 127),
                                                            (w, np.abs(w).max(0) / 127))]  # fmt: skip
        return np.linalg.norm(to_bits[0] @ to_bits[1] - x @ w)

    assert lost(x / divisors, w * divisors[:, None]) < 0.5 * lost(x, w)
