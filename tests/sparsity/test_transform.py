"""Pruning as a transform: what is gone stays gone, under any optimizer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ragjax.config import Sparsity
from ragjax.errors import InputError
from ragjax.sparsity.hard import prune
from ragjax.sparsity.masks import apply_masks, masks_from_zeros, prunable
from ragjax.sparsity.memory import zero_where_masked
from ragjax.sparsity.transform import sparsify
from ragjax.training.checkpoints import Checkpoints

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
        if i in (1, 2, 3):
            due = int(77 * (1 - (1 - (i - 1) / 2) ** 3))  # round(128 * 0.6) = 77
            for layer in range(2):
                lowest = np.argsort(np.abs(np.where(mask, w, 0))[layer], axis=None, kind="stable")[:due]
                mask[layer].flat[lowest] = False
        g = np.asarray(noise(i)["layers"]["up"]["kernel"], np.float64) * mask
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        adam = (mu / (1 - b1 ** (i + 1))) / (np.sqrt(nu / (1 - b2 ** (i + 1))) + eps)
        w = w - rate * (adam + decay * w)
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
    params, state = weights(), jax.jit(optimizer.init)(weights())
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


METHODS = {
    "gradual": Sparsity(0.75, start=2, stop=14, every=3),
    "saliency": Sparsity(0.75, score="saliency", start=2, stop=14, every=3),
    "static": Sparsity(0.75, "set", fraction=0.0),
    "set": Sparsity(0.75, "set", stop=14, every=3),
    "rigl": Sparsity(0.75, "rigl", stop=14, every=3, budget="erk"),
    "ac_dc": Sparsity(0.75, "ac_dc", start=2, stop=14, every=3),
    "rewind": Sparsity(0.75, "rewind", rewind_to=1, start=2, stop=14, every=6),
    "ste": Sparsity(0.75, "ste", schedule="periodic", start=2, every=1),
    "sr_ste": Sparsity(0.75, "sr_ste", schedule="cosine", start=2, stop=14, every=3),
    "movement": Sparsity(0.75, "movement", start=2, stop=14, every=3),
}
SHORT = 18


def due(name, step):
    """How many of the 128 weights of a matrix are gone after `step`, by a statement of its own."""
    config = METHODS[name]
    if config.method in ("set", "rigl"):
        return 96
    if step < 2:
        return 0
    turn = min(step, 14) - (min(step, 14) - 2) % config.every
    time = 1 if step >= 14 else (turn - 2) / 12
    if config.method == "ac_dc":
        return 96 if step >= 14 or (turn - 2) // 3 % 2 == 0 else 0
    share = {"cubic": 1 - (1 - time) ** 3, "cosine": (1 - np.cos(np.pi * time)) / 2, "periodic": 1}
    return int(96 * share[config.schedule] + 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_exactly_the_zeros_that_are_due_at_every_step(name):
    optimizer = sparsify(OPTIMIZERS["adamw"](), METHODS[name], total_steps=SHORT, seed=0)
    before = jax.tree.map(lambda w: np.ones(w.shape, bool), prunable(weights()))
    regrown = 0
    for step, (params, state) in enumerate(trained(optimizer, weights(), SHORT)):
        masks = optax.tree.get(state, "masks")
        chosen = prunable(params)
        jax.tree.map(lambda mask, w: np.testing.assert_array_equal(w[~mask], 0), masks, chosen)
        assert {int(v) for m in jax.tree.leaves(masks) for v in (~m).sum((-2, -1))} == {due(name, step)}, step
        if METHODS[name].method in ("set", "rigl", "ac_dc") and step:
            grown = jax.tree.map(lambda m, b: m & ~b, masks, before)
            regrown += sum(g.sum() for g in jax.tree.leaves(grown))
            for tree in (chosen, *(prunable(optax.tree.get(state, moment)) for moment in ("mu", "nu"))):
                jax.tree.map(lambda g, w: np.testing.assert_array_equal(w[g], 0), grown, tree)
        before = masks
    assert bool(regrown) == (name in ("set", "rigl", "ac_dc"))


def test_saliency_is_ranked_by_the_gradient_that_came_in():
    config = Sparsity(0.5, score="saliency", schedule="one_shot")
    optimizer = sparsify(optax.chain(optax.clip(1e-3), optax.sgd(1.0)), config, total_steps=3, seed=0)
    _, state = next(trained(optimizer, weights(), 1))
    for layer in range(2):
        w, g, mask = (
            np.asarray(tree["layers"]["up"]["kernel"])[layer].ravel()
            for tree in (weights(), noise(0), optax.tree.get(state, "masks"))
        )
        assert mask.sum() == 64
        assert np.abs(w * g)[mask].min() >= np.abs(w * g)[~mask].max()


@pytest.mark.parametrize("name", ["rigl", "sr_ste"])
def test_resumed_is_uninterrupted_to_the_last_bit(name, tmp_path):
    optimizer = sparsify(OPTIMIZERS["adamw"](), METHODS[name], total_steps=SHORT, seed=0)
    update = jax.jit(optimizer.update)

    def go_on(params, state, steps):
        for i in steps:
            updates, state = update(noise(i), state, params, step=jnp.int32(i))
            params = optax.apply_updates(params, updates)
        return params, state

    begin = (weights(), jax.jit(optimizer.init)(weights()))
    whole = go_on(*begin, range(SHORT))
    with Checkpoints(tmp_path, keep=2, fingerprint={}) as saved:
        saved.save(7, go_on(*begin, range(7)))
        _, half = saved.restore(jax.eval_shape(lambda: begin))
    jax.tree.map(np.testing.assert_array_equal, go_on(*half, range(7, SHORT)), whole)


@pytest.mark.parametrize(
    ("skipped", "after"), [({5}, 6), ({5, 6, 7}, 8), ({4, 5, 6, 7, 8}, 9), ({14, 15}, 16)]
)
def test_ac_dc_is_in_its_phase_after_skipped_steps(skipped, after):
    optimizer = sparsify(OPTIMIZERS["adamw"](), METHODS["ac_dc"], total_steps=SHORT, seed=0)
    update = jax.jit(optimizer.update)
    params, state = weights(), jax.jit(optimizer.init)(weights())
    for step in (step for step in range(after + 1) if step not in skipped):
        updates, state = update(noise(step), state, params, step=jnp.int32(step))
        params = optax.apply_updates(params, updates)
    assert density(optax.tree.get(state, "masks")) == 1 - due("ac_dc", after) / 128


FROZEN = ("adamw", "masked_decay", "lion", "adafactor", "sgd", "muon", "schedule_free")


@pytest.mark.parametrize("name", FROZEN)
def test_a_sparse_model_stays_sparse_whatever_follows_and_so_do_its_averages(name):
    masks = jax.tree.map(lambda w: jnp.abs(w) > 0.7, prunable(weights()))
    start = apply_masks(weights(), masks)
    optimizer = sparsify(OPTIMIZERS[name](), Sparsity(), total_steps=9, seed=0, masks=masks)
    average = optax.ema(0.9)
    shadow = average.init(start)
    for params, state in trained(optimizer, start, 9):
        mean, shadow = average.update(params, shadow)
        found = [params, mean]
        if name == "schedule_free":
            found.append(optax.contrib.schedule_free_eval_params(state.optimizer, params))
        for tree in found:
            jax.tree.map(lambda mask, w: np.testing.assert_array_equal(w != 0, mask), masks, prunable(tree))
        jax.tree.map(np.testing.assert_array_equal, optax.tree.get(state, "masks"), masks)


def test_methods_go_under_multi_steps():
    """Every second call updates; the weights in between are left."""
    optimizer = optax.MultiSteps(
        sparsify(OPTIMIZERS["adamw"](), METHODS["rigl"], total_steps=SHORT, seed=0), every_k_schedule=2
    )
    *_, (params, state) = trained(optimizer, weights(), 8)
    masks = optax.tree.get(state, "masks")
    assert density(masks) == 0.25
    jax.tree.map(np.testing.assert_array_equal, apply_masks(params, masks), params)


PATTERNED = [("random", "tensor"), *(("magnitude", name) for name in ("row", "global", "n_of_m"))]


SHARED = ("gradual", "saliency", "set", "rigl", "ac_dc", "rewind", "ste", "movement")


@pytest.mark.parametrize(
    "config",
    [
        *(METHODS[name] for name in SHARED),
        *(Sparsity(0.5, score=s, pattern=p, start=0, stop=4, every=2) for s, p in PATTERNED),
    ],
    ids=[*SHARED, *("-".join(pair) for pair in PATTERNED)],
)
def test_a_mesh_changes_no_bit_and_all_lies_where_its_weight_does(config):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    config = replace(config, start=min(config.start, 1), stop=4, every=2)
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
    layout = layouts["layers"]["up"]["kernel"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(results[1][1]):
        if leaf.shape == (2, 16, 8):
            assert leaf.sharding.is_equivalent_to(layout, 3), jax.tree_util.keystr(path)
    text = step.lower(*results[1], place(noise(0))).compile().as_text()
    assert "all-gather" not in text
