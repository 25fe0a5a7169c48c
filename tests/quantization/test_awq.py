"""AWQ against every exponent tried in float64."""

import jax
import numpy as np
import pytest

from ragjax.quantization.awq import EXPONENTS, activation_aware
from ragjax.quantization.grid import rounded
from ragjax.quantization.scheme import Scheme

SCHEME = Scheme(bits=4, group=16)
choose = jax.jit(activation_aware, static_argnames=("scheme", "tie"))


def problem(inputs=64, outputs=24, dead=(), seed=0):
    """A kernel and tokens, some inputs of which are far larger than others."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(300, inputs)) * np.exp(1.5 * rng.normal(size=inputs))).astype(np.float32)
    x[:, list(dead)] = 0
    return rng.normal(size=(inputs, outputs)).astype(np.float32), x


def loss(kernel, x, divisors):
    scaled = np.asarray(rounded(kernel * divisors[:, None].astype(np.float32), SCHEME), np.float64)
    return np.square(x.astype(np.float64) @ (kernel - scaled / divisors[:, None])).sum()


def candidates(x):
    sizes = np.abs(x.astype(np.float64)).mean(0)
    for exponent in EXPONENTS:
        scale = sizes**exponent
        yield scale / np.sqrt(scale.max() * scale.min())


@pytest.mark.parametrize("seed", range(3))
def test_the_exponent_is_the_best_of_twenty(seed):
    kernel, x = problem(seed=seed)
    np.testing.assert_allclose(EXPONENTS, np.arange(20) / 20)
    found = np.asarray(choose(kernel, x.T @ x, 300 * np.abs(x).mean(0), SCHEME))
    losses = [loss(kernel, x, each) for each in candidates(x)]
    best = list(candidates(x))[int(np.argmin(losses))]
    np.testing.assert_allclose(found, best, rtol=1e-4)
    assert loss(kernel, x, found) < 0.8 * losses[0]


def test_inputs_alike_are_not_scaled():
    kernel, x = problem()
    x = np.sign(x)
    np.testing.assert_array_equal(choose(kernel, x.T @ x, np.abs(x).sum(0), SCHEME), 1)


def test_inputs_that_were_never_seen_are_not_scaled_and_do_not_matter():
    dead = [3, 30]
    kernel, x = problem(dead=dead)
    found = np.asarray(choose(kernel, x.T @ x, np.abs(x).sum(0), SCHEME))
    assert (found[dead] == 1).all()
    alive = np.delete(found, dead)
    assert alive.max() * alive.min() == pytest.approx(1, rel=1e-4)
    nothing = choose(kernel, np.zeros((64, 64), np.float32), np.zeros(64, np.float32), SCHEME)
    np.testing.assert_array_equal(nothing, 1)


def test_a_broken_gram_scales_nothing():
    kernel, x = problem()
    gram = x.T @ x
    gram[0, 0] = np.nan
    np.testing.assert_allclose(choose(kernel, gram, np.abs(x).sum(0), SCHEME), 1, rtol=1e-6)


def test_what_must_be_alike_is_tried_alike():
    kernel, x = problem()

    def pairs(divisors):
        return divisors.reshape(-1, 2).mean(1).repeat(2)

    found = np.asarray(choose(kernel, x.T @ x, np.abs(x).sum(0), SCHEME, tie=pairs))
    assert (found[::2] == found[1::2]).all()
    losses = [loss(kernel, x, np.asarray(pairs(each))) for each in candidates(x)]
    assert loss(kernel, x, found) == pytest.approx(min(losses), rel=1e-4)
