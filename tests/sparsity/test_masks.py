"""Masks: what may be pruned, and exact zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.models.names import path_name
from ragjax.sparsity.masks import (
    apply_masks,
    dense_masks,
    mask_sparsity,
    masks_from_zeros,
    prunable,
)

KERNELS = {
    "layers/attention/query/kernel",
    "layers/attention/key/kernel",
    "layers/attention/value/kernel",
    "layers/attention/out/kernel",
    "layers/mlp/up/kernel",
    "layers/mlp/down/kernel",
}


def names(tree):
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_by_default_the_kernels_of_the_blocks_are_prunable_and_nothing_else(tiny_model):
    assert names(prunable(tiny_model.params)) == KERNELS


def test_patterns_choose_by_whole_names(tiny_model):
    chosen = prunable(tiny_model.params, ("layers/mlp/*/kernel", "embedding/tokens"))
    assert names(chosen) == {"layers/mlp/up/kernel", "layers/mlp/down/kernel", "embedding/tokens"}
    assert chosen["layers"]["attention"]["query"] == {"kernel": None, "bias": None}


def test_patterns_that_match_nothing_are_refused_with_the_names_there_are(tiny_model):
    with pytest.raises(InputError) as error:
        prunable(tiny_model.params, ("layers/*/kernel", "blocks/*", "kernel"))
    assert "'blocks/*', 'kernel'" in str(error.value)
    assert "layers/mlp/up/kernel" in str(error.value)


def test_vectors_are_refused(tiny_model):
    with pytest.raises(InputError, match=r"final_norm/scale \(32,\)"):
        prunable(tiny_model.params, ("layers/*/kernel", "final_norm/*"))


def test_applied_masks_leave_zeros_whatever_stood_there():
    tree = {"w": jnp.array([[1.0, jnp.nan], [jnp.inf, -2.0]]), "b": jnp.array([jnp.nan])}
    masks = {"w": jnp.array([[True, False], [False, True]]), "b": None}
    masked = apply_masks(tree, masks)
    np.testing.assert_array_equal(masked["w"], [[1.0, 0.0], [0.0, -2.0]])
    assert masked["b"] is tree["b"]


def test_masks_are_found_again_in_the_zeros_they_left(tiny_model):
    dense = dense_masks(tiny_model.params)
    assert all(mask.all() and mask.dtype == bool for mask in jax.tree.leaves(dense))
    masks = jax.tree.map(lambda w: w > 0.05, prunable(tiny_model.params))
    found = masks_from_zeros(apply_masks(tiny_model.params, masks))
    jax.tree.map(np.testing.assert_array_equal, found, masks)
    assert jax.tree.structure(found) == jax.tree.structure(masks)


def test_mask_sparsity_weighs_every_weight_alike():
    masks = {"a": jnp.zeros((2, 5), bool), "b": jnp.arange(30).reshape(5, 6) >= 6, "c": None}
    assert float(mask_sparsity(masks)) == pytest.approx(16 / 40)
