"""Latent weights against plain numpy statements of the papers, under SGD and Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ragjax.config import Sparsity
from ragjax.sparsity.transform import sparsify

STEPS, RATE, DECAY = 12, 0.05, 0.3
RNG = np.random.default_rng(0)
START = {
    "layers": {"up": {"kernel": RNG.normal(size=(2, 6, 5)), "bias": RNG.normal(size=(2, 5))}},
}
INPUTS, TARGETS = RNG.normal(size=(2, 9, 6)), RNG.normal(size=(2, 9, 5))


def loss(params):
    up = params["layers"]["up"]
    return jnp.sum((INPUTS @ up["kernel"] + up["bias"][:, None] - TARGETS) ** 2) / 9


def gradients(kernel, bias):
    """Those of `loss`, in numpy."""
    error = 2 * (INPUTS @ kernel + bias[:, None] - TARGETS) / 9
    return INPUTS.transpose(0, 2, 1) @ error, error.sum(1)


def sgd():
    return lambda g: -RATE * g


def adam():
    mu = nu = step = 0

    def move(g):
        nonlocal mu, nu, step
        step, mu, nu = step + 1, 0.9 * mu + 0.1 * g, 0.99 * nu + 0.01 * g * g
        return -RATE * (mu / (1 - 0.9**step)) / (np.sqrt(nu / (1 - 0.99**step)) + 1e-8)

    return move


OPTIMIZERS = {"sgd": (lambda: optax.sgd(RATE), sgd), "adam": (lambda: optax.adam(RATE, 0.9, 0.99), adam)}


def mask_of(scores, count):
    """True at all but the `count` lowest scores of each matrix."""
    mask = np.ones(scores.shape, bool)
    for layer, s in enumerate(scores):
        mask[layer].flat[np.argsort(s, axis=None, kind="stable")[:count]] = False
    return mask


def reference(method, rule, counts):
    """Yields kernel, bias and mask after each step; a mask is chosen where `counts` has a number."""
    dense, bias = START["layers"]["up"]["kernel"], START["layers"]["up"]["bias"]
    move, move_bias = rule(), rule()
    mask, scores = np.ones(dense.shape, bool), np.zeros(dense.shape)
    for count in counts:
        g, g_bias = gradients(dense * mask, bias)
        if method == "movement":
            scores = scores - dense * g
            g = g * mask
        if method == "sr_ste":
            g = g + DECAY * (1 - mask) * dense
        dense, bias = dense + move(g), bias + move_bias(g_bias)
        if count is not None:
            mask = mask_of(scores if method == "movement" else np.abs(dense), count)
        yield dense * mask, bias, mask


def trained(optimizer, steps=STEPS):
    params = jax.tree.map(jnp.float32, START)
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        yield jax.device_get((params, state))


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize(
    ("method", "schedule", "every"),
    [("ste", "periodic", 1), ("sr_ste", "periodic", 2), ("movement", "cubic", 3)],
)
def test_the_method_is_the_one_of_its_paper(method, schedule, every, rule):
    fields = {"decay": DECAY} if method == "sr_ste" else {}
    config = Sparsity(0.6, method, schedule=schedule, start=1, stop=7, every=every, **fields)
    ours, theirs = OPTIMIZERS[rule]
    shares = [
        1 if schedule == "periodic" else 1 - (1 - np.clip((i - 1) / 6, 0, 1)) ** 3 for i in range(STEPS)
    ]
    counts = [
        int(18 * shares[i] + 1e-6) if i >= 1 and ((i - 1) % every == 0 or i == 7) else None
        for i in range(STEPS)
    ]
    optimizer = sparsify(ours(), config, total_steps=STEPS, seed=0)
    came_back, before = 0, np.ones((2, 6, 5), bool)
    for (params, state), (kernel, bias, mask) in zip(
        trained(optimizer), reference(method, theirs, counts), strict=True
    ):
        found = optax.tree.get(state, "masks")["layers"]["up"]["kernel"]
        np.testing.assert_array_equal(found, mask)
        up = params["layers"]["up"]
        np.testing.assert_allclose(up["kernel"], kernel, atol=2e-5)
        np.testing.assert_array_equal(up["kernel"][~mask], 0)
        np.testing.assert_allclose(up["bias"], bias, atol=2e-5)
        came_back, before = came_back + (mask & ~before).sum(), mask
    assert came_back > 0
    assert (~mask).sum() == 2 * 18


def test_parameters_are_the_dense_weights_where_kept_to_the_last_bit():
    config = Sparsity(0.5, "ste", schedule="periodic", every=1)
    optimizer = sparsify(optax.adamw(3e-3), config, total_steps=40, seed=0)
    for params, state in trained(optimizer, 40):
        dense, mask = (optax.tree.get(state, name)["layers"]["up"]["kernel"] for name in ("dense", "masks"))
        kernel = params["layers"]["up"]["kernel"]
        # A weight that changes by more than half of itself in one step is rounded once.
        np.testing.assert_allclose(kernel, np.where(mask, dense, 0), rtol=3e-7, atol=1e-9)


def test_given_masks_hold_until_the_first_update():
    given = {"layers": {"up": {"kernel": jnp.asarray(START["layers"]["up"]["kernel"] > 0), "bias": None}}}
    config = Sparsity(0.5, "ste", schedule="periodic", start=3, stop=6)
    optimizer = sparsify(optax.sgd(RATE), config, total_steps=8, seed=0, masks=given)
    for i, (params, state) in enumerate(trained(optimizer, 5)):
        mask = optax.tree.get(state, "masks")["layers"]["up"]["kernel"]
        np.testing.assert_array_equal(params["layers"]["up"]["kernel"][~mask], 0)
        assert np.array_equal(mask, given["layers"]["up"]["kernel"]) == (i < 3)
