"""Scores."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ragjax.sparsity.scores import magnitude, random


def test_magnitude_is_the_absolute_value():
    weights = {"a": jnp.array([[-2.0, 0.0, 1.5]]), "b": None}
    scores = magnitude(weights, jax.random.key(0))
    np.testing.assert_array_equal(scores["a"], [[2.0, 0.0, 1.5]])
    assert scores["b"] is None


def test_random_differs_by_key_and_by_name_and_not_by_company():
    w = jnp.zeros((64, 64))
    scores = random({"a": w, "b": w}, jax.random.key(0))
    assert (scores["a"] != scores["b"]).mean() > 0.99
    assert (scores["a"] != random({"a": w}, jax.random.key(1))["a"]).mean() > 0.99
    np.testing.assert_array_equal(scores["b"], random({"b": w, "c": w}, jax.random.key(0))["b"])
    assert abs(float(scores["a"].mean()) - 0.5) < 0.02
    assert scores["a"].min() >= 0
    assert scores["a"].max() < 1


def test_random_does_not_depend_on_the_mesh():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    layout = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    weights = {"kernel": jnp.zeros((3, 16, 32))}
    score = jax.jit(random, out_shardings=layout)
    spread = score(jax.device_put(weights, layout), jax.random.key(5))
    np.testing.assert_array_equal(spread["kernel"], random(weights, jax.random.key(5))["kernel"])
