"""Choosing layer by layer gives what choosing at once gives, and holds little."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ragjax.config import Sparsity
from ragjax.sparsity import sparsify
from ragjax.sparsity.by_layer import by_layer
from ragjax.sparsity.rules import strongest


def stacks(layers, *shapes):
    return {str(i): jax.random.normal(jax.random.key(i), (layers, *shape)) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("pattern", ["tensor", "row", "block", "n_of_m", "global"])
def test_layer_by_layer_is_all_at_once(pattern):
    config = Sparsity(0.5, pattern=pattern, block=(2, 3))
    scores = stacks(3, (8, 6), (12, 4))

    def choose(scores, key):
        return strongest(config, scores)

    chosen = jax.jit(lambda s: by_layer(choose, config, s, key=jax.random.key(0)))(scores)
    jax.tree.map(np.testing.assert_array_equal, chosen, strongest(config, scores))


def test_every_layer_draws_with_a_key_of_its_own():
    drawn = by_layer(
        lambda w, key: jax.tree.map(lambda x: jax.random.bernoulli(key, 0.5, x.shape), w),
        Sparsity(0.5), stacks(2, (16, 16)), key=jax.random.key(0),
    )  # fmt: skip
    assert (drawn["0"][0] != drawn["0"][1]).any()


def test_arrays_without_a_common_depth_are_chosen_at_once():
    seen = []
    trees = {"a": jnp.ones((2, 4, 4)), "b": jnp.ones((3, 4, 4)), "c": jnp.ones((4, 4))}
    by_layer(lambda w, key: seen.append(w) or w, Sparsity(0.5), trees, key=jax.random.key(0))
    assert [leaf.ndim for leaf in jax.tree.leaves(seen)] == [3, 3, 2]


@pytest.mark.parametrize("method", ["gradual", "set", "rigl", "ac_dc"])
def test_an_update_of_the_masks_holds_less_than_the_scores_of_all_layers(method):
    params = {"layers": {"up": {"kernel": jax.ShapeDtypeStruct((32, 128, 512), jnp.float32)}}}
    optimizer = sparsify(optax.sgd(0.1), Sparsity(0.5, method), total_steps=100, seed=0)

    def step(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(params, state, params).compile()
    scores = 4 * 32 * 128 * 512
    assert compiled.memory_analysis().temp_size_in_bytes < scores
