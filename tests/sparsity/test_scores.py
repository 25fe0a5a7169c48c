"""Scores against the formulas of their papers in float64, and against the rules of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ragjax.sparsity.patterns import per_row
from ragjax.sparsity.scores import SCORES, Evidence, magnitude, random, ria, saliency, wanda

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norms_of(tokens):
    return np.sqrt((tokens.astype(np.float64) ** 2).sum(0)).astype(np.float32)


def test_magnitude_is_the_absolute_value():
    scores = magnitude(Evidence({"a": jnp.array([[-2.0, 0.0, 1.5]]), "b": None}, KEY))
    np.testing.assert_array_equal(scores["a"], [[2.0, 0.0, 1.5]])
    assert scores["b"] is None


def test_random_differs_by_key_and_by_name_and_not_by_company():
    w = jnp.zeros((64, 64))
    scores = random(Evidence({"a": w, "b": w}, KEY))
    assert (scores["a"] != scores["b"]).mean() > 0.99
    assert (scores["a"] != random(Evidence({"a": w}, jax.random.key(1)))["a"]).mean() > 0.99
    np.testing.assert_array_equal(scores["b"], random(Evidence({"b": w, "c": w}, KEY))["b"])
    assert abs(float(scores["a"].mean()) - 0.5) < 0.02
    assert scores["a"].min() >= 0
    assert scores["a"].max() < 1


def test_random_does_not_depend_on_the_mesh():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    layout = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    weights = {"kernel": jnp.zeros((3, 16, 32))}
    score = jax.jit(lambda weights, key: random(Evidence(weights, key)), out_shardings=layout)
    spread = score(jax.device_put(weights, layout), jax.random.key(5))
    alone = random(Evidence(weights, jax.random.key(5)))
    np.testing.assert_array_equal(spread["kernel"], alone["kernel"])


def test_saliency_is_the_change_of_the_loss_to_first_order():
    weights, gradients = draw(3, 8, 5), draw(3, 8, 5, seed=1)
    scores = saliency(Evidence({"w": weights, "b": None}, KEY, gradients={"w": gradients, "b": None}))
    np.testing.assert_allclose(scores["w"], np.abs(weights.astype(np.float64) * gradients), rtol=1e-6)
    assert scores["b"] is None
    # Of a loss that is linear in w, the change is w g exactly.
    without = weights.copy()
    without[1, 2, 3] = 0
    change = (weights * gradients).sum(dtype=np.float64) - (without * gradients).sum(dtype=np.float64)
    assert scores["w"][1, 2, 3] == pytest.approx(abs(change), rel=1e-5)


def test_wanda_is_the_papers_formula():
    weights, tokens = draw(12, 5), draw(40, 12, seed=1)
    scores = wanda(Evidence({"w": weights}, KEY, input_norms={"w": norms_of(tokens)}))["w"]
    # As the paper writes it: W [out, in], X [tokens, in], S_ij = |W_ij| ||X_j||_2.
    w, x = weights.T.astype(np.float64), tokens.astype(np.float64)
    expected = np.array([[abs(w[i, j]) * np.sqrt((x[:, j] ** 2).sum()) for j in range(12)] for i in range(5)])
    np.testing.assert_allclose(scores.T, expected, rtol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_wanda_by_row_removes_what_llmcompressor_removes(sparsity, ties):
    """Per output row its stable sort drops the int(in * s) smallest, ours the round(in * s): here alike."""
    inputs, outputs = 16, 6
    weights = np.rint(2 * draw(inputs, outputs)) if ties else draw(inputs, outputs)
    norms = np.ones(inputs, np.float32) if ties else norms_of(draw(30, inputs, seed=1))
    assert int(inputs * sparsity) == round(inputs * sparsity)
    metric = np.abs(weights.T) * norms
    theirs = np.ones((outputs, inputs), bool)
    for row in range(outputs):
        theirs[row, np.argsort(metric[row], kind="stable")[: int(inputs * sparsity)]] = False
    ours = per_row(wanda(Evidence({"w": weights}, KEY, input_norms={"w": norms})), sparsity)["w"]
    np.testing.assert_array_equal(ours, theirs.T)


def test_ria_is_the_papers_formula_and_keeps_zeros_at_zero():
    weights, tokens = draw(10, 7), draw(40, 10, seed=1)
    weights[3] = 0
    weights[4, 2] = 0
    scores = np.asarray(ria(Evidence({"w": weights}, KEY, input_norms={"w": norms_of(tokens)}))["w"])
    w, x = np.abs(weights.T.astype(np.float64)), tokens.astype(np.float64)
    for i in range(7):
        for j in range(10):
            relative = w[i, j] / max(w[:, j].sum(), 1e-300) + w[i, j] / w[i].sum()
            assert scores[j, i] == pytest.approx(relative * np.sqrt((x[:, j] ** 2).sum()) ** 0.5, rel=1e-5)
    assert not scores[3].any()
    assert scores[4, 2] == 0


@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.needs == "input_norms"])
def test_layers_are_scored_each_with_its_own_inputs(name):
    weights, norms = draw(3, 8, 5), np.abs(draw(3, 8, seed=1))
    together = SCORES[name].rank(Evidence({"w": weights}, KEY, input_norms={"w": norms}))["w"]
    for layer in range(3):
        alone = SCORES[name].rank(Evidence({"w": weights[layer]}, KEY, input_norms={"w": norms[layer]}))
        np.testing.assert_allclose(together[layer], alone["w"], rtol=1e-6)
