"""Rules against plain statements of the papers, one matrix at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Sparsity
from ragjax.sparsity.rules import Turn, alternate, random_masks, regrow_by_gradient, regrow_random, shrink
from ragjax.sparsity.scores import Evidence, random

SHAPES = {"a": (2, 12, 7), "b": (1, 5, 9)}


def turn(seed=0, *, density=0.4, share=1.0, time=0.25, number=0):
    """Masked weights and dense gradients, of which some are alike."""
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(shape) < density for name, shape in SHAPES.items()}
    weights = {n: np.where(m, np.round(rng.normal(size=m.shape), 1), 0) for n, m in masks.items()}
    gradients = {name: np.round(rng.normal(size=shape), 1) for name, shape in SHAPES.items()}
    trees = (jax.tree.map(jnp.asarray, tree) for tree in (masks, weights, gradients))
    masks, weights, gradients = trees
    seen = Evidence(weights, jax.random.key(seed), gradients)
    return Turn(masks, seen, jnp.float32(share), jnp.float32(time), jnp.int32(number))


def regrown(mask, weights, promise, fraction):
    """Algorithm 1 of RigL: drop the least |w|, grow the most promising of all but the survivors."""
    count = int(np.floor(np.float32(mask.sum()) * fraction))
    kept = np.flatnonzero(mask)
    dropped = kept[np.argsort(np.abs(weights.flat[kept]), kind="stable")[:count]]
    mask = mask.copy()
    mask.flat[dropped] = False
    free = np.flatnonzero(~mask)
    mask.flat[free[np.argsort(-promise.flat[free], kind="stable")[:count]]] = True
    return mask


@pytest.mark.parametrize("time", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    ("rule", "promise"),
    [
        (regrow_by_gradient, lambda seen: jax.tree.map(jnp.abs, seen.gradients)),
        (regrow_random, random),
    ],
)
def test_regrowth_is_the_algorithm_of_the_paper(rule, promise, time):
    for seed in range(3):
        given = turn(seed, time=time)
        found = rule(Sparsity(target=0.6, method="rigl", fraction=0.5), given)
        fraction = np.float32(0.5 / 2 * (1 + np.cos(np.pi * np.float32(time))))
        for name in SHAPES:
            for layer, mask in enumerate(np.asarray(given.masks[name])):
                expected = regrown(
                    mask,
                    np.asarray(given.seen.weights[name][layer]),
                    np.asarray(promise(given.seen)[name][layer]),
                    fraction,
                )
                np.testing.assert_array_equal(found[name][layer], expected)
                assert expected.sum() == mask.sum()


def test_a_drop_fraction_of_0_leaves_masks_alone():
    given = turn()
    found = regrow_by_gradient(Sparsity(target=0.6, method="rigl", fraction=0.0), given)
    jax.tree.map(np.testing.assert_array_equal, found, given.masks)


def test_a_weight_dropped_in_this_turn_may_grow_at_once():
    mask = jnp.asarray([[[True, True, False, False]]])
    weights, gradients = jnp.asarray([[[5.0, 1.0, 0, 0]]]), jnp.asarray([[[9.0, 7.0, 1.0, 2.0]]])
    given = Turn(mask, Evidence(weights, jax.random.key(0), gradients), 1.0, jnp.float32(0), jnp.int32(0))
    found = regrow_by_gradient(Sparsity(target=0.5, method="rigl", fraction=0.5), given)
    np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(
    ("number", "time", "dense"), [(0, 0.0, False), (1, 0.2, True), (2, 0.4, False), (3, 1.0, False)]
)
def test_ac_dc_is_compressed_in_even_phases_and_from_the_stop_on(number, time, dense):
    given = turn(density=1.0, number=number, time=time)
    found = alternate(Sparsity(target=0.75, method="ac_dc"), given)
    for name, mask in found.items():
        size = mask[0].size
        assert set(np.sum(mask, (-2, -1)).tolist()) == {size if dense else size - round(0.75 * size)}
        if not dense:
            weights = np.abs(given.seen.weights[name])
            for layer, kept in enumerate(np.asarray(mask)):
                assert weights[layer][kept].min() >= weights[layer][~kept].max()


def test_shrinking_never_brings_a_weight_back():
    given = turn(density=0.9, share=0.5)
    found = shrink(Sparsity(target=0.8), given)
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new & ~old, False), found, given.masks)
    for mask in found.values():
        assert (np.sum(~mask, (-2, -1)) == round(0.8 * mask[0].size) // 2).all()


@pytest.mark.parametrize("budget", ["uniform", "erk"])
def test_random_masks_have_exactly_the_budget(budget):
    weights = turn().seen.weights
    config = Sparsity(target=0.6, method="set", budget=budget)
    masks = random_masks(config, weights, jax.random.key(1))
    removed = sum(int((~m).sum()) for m in masks.values())
    sizes = [m.size for m in masks.values()]
    assert abs(removed - 0.6 * sum(sizes)) <= 1.5
    for mask in masks.values():
        assert len(set(np.sum(mask, (-2, -1)).tolist())) == 1
    other = random_masks(config, weights, jax.random.key(2))
    assert not np.array_equal(masks["a"], other["a"])
    assert not np.array_equal(masks["a"][0], masks["a"][1])
