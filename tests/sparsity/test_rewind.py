"""Rewinding: every round begins at the snapshot, with fewer weights and no memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ragjax.config import Sparsity
from ragjax.sparsity.transform import sparsify

RNG = np.random.default_rng(0)
START = {"layers": {"up": {"kernel": RNG.normal(size=(2, 8, 6)), "bias": RNG.normal(size=(2, 6))}}}
CONFIG = Sparsity(0.7, "rewind", schedule="geometric", rewind_to=2, start=3, stop=15, every=4)
OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4, momentum=0.9),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2, warmup_steps=2),
}


def gradient(i):
    rng = np.random.default_rng(i)
    return jax.tree.map(lambda w: jnp.float32(rng.normal(size=w.shape)), START)


def trained(optimizer, steps, skipped=()):
    """Parameters and state before the first step and after each that is taken, by number of the next."""
    params = jax.tree.map(jnp.float32, START)
    state = jax.jit(optimizer.init)(params)
    seen = {0: jax.device_get((params, state))}
    update = jax.jit(optimizer.update)
    for i in range(steps):
        if i not in skipped:
            updates, state = update(gradient(i), state, params, step=jnp.int32(i))
            params = optax.apply_updates(params, updates)
            seen[i + 1] = jax.device_get((params, state))
    return seen


def apart(found, goal, before):
    """Distance of found from goal in units of the last place of the larger of goal and before."""
    return np.abs(found - goal) / np.spacing(np.maximum(np.abs(goal), np.abs(before)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_round_begins_at_the_snapshot_times_the_mask(name):
    optimizer = sparsify(OPTIMIZERS[name](), CONFIG, total_steps=20, seed=0)
    seen = trained(optimizer, 20)
    snapshot = seen[2][0]
    sizes = []
    for i in (7, 11, 15):
        (before, _), (params, state) = seen[i], seen[i + 1]
        masks = optax.tree.get(state, "masks")["layers"]["up"]["kernel"]
        goal = jax.tree.map(np.copy, snapshot)
        goal["layers"]["up"]["kernel"][~masks] = 0
        assert max(a.max() for a in jax.tree.leaves(jax.tree.map(apart, params, goal, before))) <= 1
        np.testing.assert_array_equal(params["layers"]["up"]["kernel"] != 0, masks)
        begun = OPTIMIZERS[name]().init(goal)
        memory = state.sparse.optimizer
        jax.tree.map(
            lambda found, new: np.ndim(new) == 0 or np.testing.assert_array_equal(found, new), memory, begun
        )
        assert (
            any(np.ndim(leaf) == 0 and leaf == i + 1 for leaf in jax.tree.leaves(memory)) or name != "adamw"
        )
        sizes.append(masks.sum((-2, -1)).tolist())
    # 48 weights; a geometric way to round(48 * 0.7) = 34 removed.
    expected = [48 - int(34 * (1 - 0.3 ** (k / 3)) / 0.7 + 1e-4) for k in (1, 2, 3)]
    assert sizes == [[size, size] for size in expected]


def test_between_rounds_it_is_plain_training():
    optimizer = sparsify(optax.sgd(0.1), CONFIG, total_steps=20, seed=0)
    seen = trained(optimizer, 20)
    for i in set(range(20)) - {7, 11, 15}:
        before, after = seen[i][0]["layers"]["up"], seen[i + 1][0]["layers"]["up"]
        masks = optax.tree.get(seen[i][1], "masks")["layers"]["up"]["kernel"]
        g = gradient(i)["layers"]["up"]
        np.testing.assert_allclose(after["kernel"], before["kernel"] - 0.1 * g["kernel"] * masks, atol=1e-6)
        np.testing.assert_allclose(after["bias"], before["bias"] - 0.1 * g["bias"], atol=1e-6)


def test_a_snapshot_due_in_a_skipped_step_is_taken_at_the_next():
    optimizer = sparsify(optax.sgd(0.1), CONFIG, total_steps=20, seed=0)
    seen = trained(optimizer, 20, skipped=(1, 2, 3))
    snapshot = optax.tree.get(seen[20][1], "snapshot")
    jax.tree.map(np.testing.assert_array_equal, snapshot, seen[1][0])
