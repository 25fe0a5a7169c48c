"""Budgets against closed forms and brute force; each reaches the whole that is asked for."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import OneShot
from ragjax.errors import InputError
from ragjax.sparsity.calibrated.budgets import BUDGETS, Census, erk, from_table, over_model, owl, uniform

LAYERS = 4
SHAPES = {
    "layers/attention/out/kernel": (LAYERS, 8, 8),
    "layers/mlp/down/kernel": (LAYERS, 32, 8),
    "layers/mlp/up/kernel": (LAYERS, 8, 32),
}
SIZES = {name: shape[1] * shape[2] for name, shape in SHAPES.items()}


def draw_scores(seed=0, ties=False):
    rng = np.random.default_rng(seed)
    scores = {name: np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}
    return {name: np.round(4 * s) / 4 for name, s in scores.items()} if ties else scores


def census(sparsity=0.5, table=None, scores=None, asked=None):
    scores = draw_scores() if scores is None else scores

    def of_layer(score, layer):
        if asked is not None:
            asked.append((score, layer))
        return {name: jnp.asarray(s[layer]) for name, s in scores.items()}

    return Census(SHAPES, sparsity, of_layer, "magnitude", table or {})


def total(sparsities):
    assert sparsities.keys() == SHAPES.keys()
    assert {each.shape for each in sparsities.values()} == {(LAYERS,)}
    removed = sum(SIZES[name] * each.sum() for name, each in sparsities.items())
    return removed / (LAYERS * sum(SIZES.values()))


def test_every_choice_in_the_schema_is_in_the_table():
    assert set(typing.get_args(typing.get_type_hints(OneShot)["budget"])) == set(BUDGETS)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("name", [name for name in BUDGETS if name != "table"])
def test_the_whole_is_what_is_asked_for_and_every_part_is_a_share(name, sparsity):
    found = BUDGETS[name](census(sparsity))
    assert total(found) == pytest.approx(sparsity, abs=1 / sum(SIZES.values()))
    assert all((each >= 0).all() and (each <= 1).all() for each in found.values())


def test_uniform_is_the_same_everywhere():
    assert all((each == 0.3).all() for each in uniform(census(0.3)).values())


def test_erk_follows_the_closed_form_below_the_cap():
    found = erk(census(0.7))
    ratios = {name: (n + m) / (n * m) for name, (_, n, m) in SHAPES.items()}
    scale = 0.3 * sum(SIZES.values()) / sum(ratios[name] * SIZES[name] for name in SHAPES)
    for name, each in found.items():
        np.testing.assert_allclose(1 - each, scale * ratios[name])


def test_owl_keeps_more_where_outliers_are_and_stays_within_its_spread():
    scores = {name: np.ones_like(s) for name, s in draw_scores().items()}
    # Of 576 scores in a layer, those of 1000 are above 5 times their mean.
    counts = [0, 1, 2, 5]
    for layer, count in enumerate(counts):
        scores["layers/mlp/up/kernel"][layer].ravel()[:count] = 1000
    # Above the mean, and not five times as large: no outliers.
    scores["layers/mlp/down/kernel"][0].ravel()[:40] = 3
    asked = []
    found = owl(census(0.6, scores=scores, asked=asked))
    off = np.array(counts) - np.mean(counts)
    for each in found.values():
        np.testing.assert_allclose(1 - each, 0.4 + 0.08 * off / 3)
    assert set(asked) == {("wanda", layer) for layer in range(LAYERS)}


def test_owl_is_uniform_where_no_layer_stands_out():
    scores = {name: np.ones_like(s) for name, s in draw_scores().items()}
    for each in owl(census(0.6, scores=scores)).values():
        np.testing.assert_allclose(each, 0.6)


def test_owl_narrows_where_its_spread_would_leave_nothing_or_all():
    for sparsity in (0.03, 0.98):
        found = owl(census(sparsity))
        every = np.concatenate(list(found.values()))
        assert every.min() >= 0
        assert every.max() <= 1
        assert total(found) == pytest.approx(sparsity)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.001, 0.3, 0.8])
def test_global_is_what_ranking_all_scores_together_removes(sparsity, ties):
    scores = draw_scores(3, ties)
    found = over_model(census(sparsity, scores=scores))
    wanted = round(sparsity * LAYERS * sum(SIZES.values()))
    # Layer by layer, in a layer by name: the order in which equal scores go.
    places = [(layer, name) for layer in range(LAYERS) for name in sorted(SHAPES)]
    flat = np.concatenate([scores[name][layer].ravel() for layer, name in places])
    owner = np.concatenate([np.full(SIZES[name], place) for place, (_, name) in enumerate(places)])
    gone = np.bincount(owner[np.argsort(flat, kind="stable")[:wanted]], minlength=len(places))
    for place, (layer, name) in enumerate(places):
        assert round(found[name][layer] * SIZES[name]) == gone[place]


def test_a_table_leaves_what_it_does_not_name_to_share_the_rest():
    found = from_table(census(0.5, {"layers/attention/*": 0.0, "layers/mlp/up/*": [0.2, 0.4, 0.6, 0.8]}))
    np.testing.assert_array_equal(found["layers/attention/out/kernel"], 0)
    np.testing.assert_allclose(found["layers/mlp/up/kernel"], [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(found["layers/mlp/down/kernel"], (0.5 * 576 - 0.5 * 256) / 256)
    assert total(found) == pytest.approx(0.5)


def test_the_first_pattern_that_fits_counts():
    found = from_table(census(0.5, {"layers/mlp/up/*": 0.9, "layers/mlp/*": 0.1}))
    assert found["layers/mlp/up/kernel"][0] == 0.9
    assert found["layers/mlp/down/kernel"][0] == 0.1


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"*": 0.4}, r"removes 40.00% .* says 50.00%: set sparsity to 0.4000"),
        ({"layers/mlp/*": 0.99}, r"those it does not name would need -"),
        ({"nothing": 0.5, "*/up/*": [0.1], "*/down/*": [2, True, "a", -1]},
         r"(?s)nothing names no .*one number for each of the 4 layers was expected, found 1.*"
         r"found \[2, True, 'a', -1\]"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_kept_is_refused(table, said):
    with pytest.raises(InputError, match=said):
        from_table(census(0.5, table))
