"""Pruning as a transform: what is gone stays gone, under any optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ragjax.config import Sparsity
from ragjax.errors import InputError
from ragjax.sparsity.masks import apply_masks, masks_from_zeros, prunable
from ragjax.sparsity.transform import prune, sparsify, zero_where_masked

STEPS = 50
CUBIC = Sparsity(target=0.75, start=5, stop=30, every=5)

OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-2, b1=0.9, weight_decay=0.1),
    "clipped_adamw": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2)),
    "masked_decay": lambda: optax.adamw(1e-2, mask=lambda p: jax.tree.map(lambda w: w.ndim > 1, p)),
    "lion": lambda: optax.lion(1e-3, weight_decay=0.1),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8, momentum=0.9),
    "muon": lambda: optax.contrib.muon(
        1e-2,
        muon_weight_dimension_numbers=lambda p: jax.tree.map(
            lambda w: optax.contrib.MuonDimensionNumbers(1, 2) if w.ndim == 3 else None, p
        ),
    ),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2, warmup_steps=5),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
}


def weights(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "embedding": {"tokens": draw(8, 16)},
        "layers": {"up": {"kernel": draw(2, 16, 8), "bias": draw(2, 8)}, "down": {"kernel": draw(2, 8, 16)}},
    }


NOISE = jax.tree.map(lambda w: np.random.default_rng(w.size).normal(size=(STEPS, *w.shape)), weights())


def noise(step):
    """A gradient that pushes every weight about, the masked ones too."""
    return jax.tree.map(lambda table: jnp.asarray(table, jnp.float32)[step], NOISE)


def trained(optimizer, params, steps=STEPS, *, gradient=noise):
    """Runs donated jitted steps; yields parameters and state after each, on the host."""

    def step(params, state, i):
        updates, state = optimizer.update(gradient(i), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, params)
    state = jax.jit(optimizer.init)(params)
    for i in range(steps):
        params, state = step(params, state, i)
        yield jax.device_get((params, state))


def density(masks):
    return sum(mask.sum() for mask in jax.tree.leaves(masks)) / sum(m.size for m in jax.tree.leaves(masks))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_revives_a_pruned_weight(name):
    optimizer = sparsify(OPTIMIZERS[name](), CUBIC, total_steps=STEPS, seed=0)
    gone = jax.tree.map(np.zeros_like, jax.tree.map(lambda w: w > 0, prunable(weights())))
    for params, state in trained(optimizer, weights()):
        masks = optax.tree.get(state, "masks")
        chosen = prunable(params)
        jax.tree.map(lambda mask, w: np.testing.assert_array_equal(w[~mask], 0), masks, chosen)
        jax.tree.map(lambda g, mask: np.testing.assert_array_equal(mask[g], False), gone, masks)
        gone = jax.tree.map(np.logical_not, masks)
        jax.tree.map(lambda w: np.testing.assert_array_equal(np.isfinite(w), True), params)
        # Whatever the optimizer keeps in the shape of a weight forgets it too.
        jax.tree.map(np.testing.assert_array_equal, zero_where_masked(state, masks), state)
    for mask in jax.tree.leaves(masks):
        assert (mask.sum((-2, -1)) == 32).all()
    assert all((leaf != 0).all() for leaf in (params["embedding"]["tokens"], params["layers"]["up"]["bias"]))


def test_moments_are_zero_where_masked_and_alive_elsewhere():
    optimizer = sparsify(OPTIMIZERS["adamw"](), CUBIC, total_steps=STEPS, seed=0)
    *_, (_, state) = trained(optimizer, weights())
    masks = optax.tree.get(state, "masks")
    for moment in ("mu", "nu"):
        values = optax.tree.get(state, moment)
        jax.tree.map(lambda v, m: np.testing.assert_array_equal(v != 0, m), prunable(values), masks)
        assert (values["layers"]["up"]["bias"] != 0).all()
        assert (values["embedding"]["tokens"] != 0).all()


def test_the_densities_on_the_way_are_those_of_the_schedule():
    optimizer = sparsify(optax.sgd(1e-3), CUBIC, total_steps=STEPS, seed=0)
    for i, (_, state) in enumerate(trained(optimizer, weights())):
        masks = optax.tree.get(state, "masks")
        step = min(i - i % 5, 30)
        share = 1 - (1 - np.clip((step - 5) / 25, 0, 1)) ** 3
        due = np.floor(96 * share + 1e-4)
        assert {int(v) for m in jax.tree.leaves(masks) for v in (~m).sum((-2, -1))} == {int(due)}, i


def test_adamw_with_pruning_equals_a_simulation_in_numpy():
    rate, b1, b2, decay, eps = 1e-2, 0.9, 0.95, 0.1, 1e-8
    config = Sparsity(target=0.6, start=1, stop=3, every=1, schedule="cubic")
    optimizer = sparsify(optax.adamw(rate, b1, b2, eps, weight_decay=decay), config, total_steps=6, seed=0)
    w = np.asarray(weights()["layers"]["up"]["kernel"], np.float64)
    mu, nu, mask = np.zeros_like(w), np.zeros_like(w), np.ones_like(w, bool)
    for i, (params, _) in enumerate(trained(optimizer, weights(), 6)):
        g = np.asarray(noise(i)["layers"]["up"]["kernel"], np.float64) * mask
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        adam = (mu / (1 - b1 ** (i + 1))) / (np.sqrt(nu / (1 - b2 ** (i + 1))) + eps)
        w = w - rate * (adam + decay * w)
        if i in (1, 2, 3):
            due = int(77 * (1 - (1 - (i - 1) / 2) ** 3))  # round(128 * 0.6) = 77
            for layer in range(2):
                lowest = np.argsort(np.abs(np.where(mask, w, 0))[layer], axis=None, kind="stable")[:due]
                mask[layer].flat[lowest] = False
        w, mu, nu = w * mask, mu * mask, nu * mask
        np.testing.assert_array_equal(params["layers"]["up"]["kernel"] != 0, mask)
        np.testing.assert_allclose(params["layers"]["up"]["kernel"], w, atol=1e-6)


def test_a_broken_gradient_of_a_masked_weight_reaches_nothing():
    masks = jax.tree.map(lambda w: w > 0, prunable(weights()))
    config = Sparsity(target=0.0)

    def broken(step):
        return jax.tree.map(
            lambda g, m: g if m is None else jnp.where(m, g, jnp.where(step % 2, jnp.nan, jnp.inf)),
            noise(step),
            masks,
        )

    results = []
    for gradient in (noise, broken):
        optimizer = sparsify(OPTIMIZERS["clipped_adamw"](), config, total_steps=9, seed=0, masks=masks)
        *_, last = trained(optimizer, weights(), 9, gradient=gradient)
        results.append(last)
    jax.tree.map(np.testing.assert_array_equal, *results)
    jax.tree.map(np.testing.assert_array_equal, masks_from_zeros(results[0][0]), masks)


def test_prune_alone_as_the_last_link_of_a_chain_leaves_exact_zeros():
    link = prune(CUBIC, total_steps=STEPS, seed=0)
    *_, (params, state) = trained(optax.chain(optax.adamw(1e-2), link), weights())
    masks = optax.tree.get(state, "masks")
    assert density(masks) == 0.25
    jax.tree.map(np.testing.assert_array_equal, apply_masks(params, masks), params)


def test_masks_stand_still_between_updates_and_after_the_stop():
    optimizer = sparsify(OPTIMIZERS["adamw"](), CUBIC, total_steps=STEPS, seed=0)
    seen = [optax.tree.get(state, "masks") for _, state in trained(optimizer, weights())]
    for i in range(1, STEPS):
        same = jax.tree.all(jax.tree.map(np.array_equal, seen[i - 1], seen[i]))
        assert same == (i not in (10, 15, 20, 25, 30)), i


@pytest.mark.parametrize("skipped", [{5, 6}, {10}, range(12, 29), range(29, 35), {30, 31}, range(6, 49)])
def test_a_trainer_that_skips_steps_loses_none_of_the_pruning(skipped):
    optimizer = sparsify(OPTIMIZERS["adamw"](), CUBIC, total_steps=STEPS, seed=0)
    params, state = weights(), optimizer.init(weights())
    update = jax.jit(optimizer.update)
    last = -1
    for step in (step for step in range(STEPS) if step not in skipped):
        before = optax.tree.get(state, "masks")
        updates, state = update(noise(step), state, params, step=jnp.int32(step))
        params = optax.apply_updates(params, updates)
        masks = optax.tree.get(state, "masks")
        due = step > 5 and any(last < at <= step for at in (5, 10, 15, 20, 25, 30))
        assert due == (not jax.tree.all(jax.tree.map(np.array_equal, before, masks))), step
        last = step
    assert density(masks) == 0.25


def test_given_masks_only_lose_weights():
    given = jax.tree.map(lambda w: jnp.abs(w) > 1.0, prunable(weights()))
    optimizer = sparsify(optax.sgd(1e-3), CUBIC, total_steps=STEPS, seed=0, masks=given)
    *_, (_, state) = trained(optimizer, weights())
    masks = optax.tree.get(state, "masks")
    jax.tree.map(lambda m, g: np.testing.assert_array_equal(m & ~g, False), masks, given)
    assert density(masks) <= 0.25


@pytest.mark.parametrize("pattern", ["tensor", "row", "global", "n_of_m"])
def test_random_pruning_nests_and_reaches_the_target_exactly(pattern):
    config = Sparsity(target=0.5, score="random", pattern=pattern, start=0, stop=20, every=4)
    optimizer = sparsify(optax.sgd(1e-3), config, total_steps=25, seed=3)
    *_, (_, state) = trained(optimizer, weights(), 25)
    assert density(optax.tree.get(state, "masks")) == 0.5


def test_a_target_of_zero_leaves_the_optimizer_as_it_is():
    optimizer = optax.adamw(1e-3)
    assert sparsify(optimizer, Sparsity(), total_steps=10, seed=0) is optimizer


def test_bad_shapes_and_names_are_refused_before_training():
    for config, word in (
        (Sparsity(target=0.4, pattern="n_of_m", n=3, m=5), "layers/up/kernel: 16 inputs"),
        (Sparsity(target=0.5, prunable=("layer/*",)), "'layer/\\*'"),
    ):
        with pytest.raises(InputError, match=word):
            sparsify(optax.sgd(1e-3), config, total_steps=10, seed=0).init(weights())


def test_moments_of_other_shapes_and_of_other_parameters_are_left():
    masks = {"a": {"kernel": jnp.zeros((2, 2), bool)}, "kernel": None}
    one = jnp.ones((2, 2))
    state = ({"a": {"kernel": one}, "kernel": one}, {"v_row": {"a": {"kernel": jnp.ones(2)}}}, jnp.int32(3))
    cleared = zero_where_masked(state, masks)
    np.testing.assert_array_equal(cleared[0]["a"]["kernel"], 0)
    np.testing.assert_array_equal(cleared[0]["kernel"], 1)
    np.testing.assert_array_equal(cleared[1]["v_row"]["a"]["kernel"], 1)
    assert cleared[2] == 3


@pytest.mark.parametrize(
    ("score", "pattern"),
    [("random", "tensor"), *(("magnitude", name) for name in ("tensor", "row", "global", "n_of_m"))],
)
def test_a_mesh_changes_no_bit_and_masks_lie_where_their_weights_do(score, pattern):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    config = Sparsity(target=0.5, score=score, pattern=pattern, start=0, stop=4, every=2)
    optimizer = sparsify(optax.sgd(1e-2, momentum=0.9), config, total_steps=6, seed=0)
    layouts = jax.tree.map(
        lambda w: NamedSharding(
            mesh, PartitionSpec(None, "fsdp", "tensor") if w.ndim == 3 else PartitionSpec()
        ),
        weights(),
    )

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    results = []
    for place in (lambda tree: tree, lambda tree: jax.device_put(tree, layouts)):
        params = place(weights())
        state = jax.jit(optimizer.init)(params)
        for i in range(6):
            params, state = step(params, state, place(noise(i)))
        results.append((params, state))
    jax.tree.map(np.testing.assert_array_equal, *results)
    jax.tree.map(
        lambda mask, w: mask.sharding.is_equivalent_to(w.sharding, 3) or pytest.fail(str(mask.sharding)),
        optax.tree.get(results[1][1], "masks"),
        prunable(results[1][0]),
    )
    text = step.lower(*results[1], place(noise(0))).compile().as_text()
    assert "all-gather" not in text
