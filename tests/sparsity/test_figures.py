"""Figures: zeros counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.decoder import init_params
from ragjax.sparsity.figures import sparsity_figures
from ragjax.sparsity.masks import masks_from_zeros


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_pad_the_vocabulary_are_not_parameters(tiny_config, tied):
    config = dataclasses.replace(tiny_config, tied=tied)
    params = init_params(config, seed=1)
    figures = sparsity_figures(params, config)
    width, layers, vocab = config.width, config.layers, config.vocab_size
    block = 4 * (width * width + width) + 2 * width * 128 + 128 + width + 4 * width
    expected = vocab * width * (1 if tied else 2) + 64 * width + layers * block + 2 * width
    assert figures.parameters == expected
    # Every bias of a new model is 0: those of the projections and of the norms.
    biases = layers * (4 * width + 128 + width + 2 * width) + width
    assert figures.nonzero_parameters == expected - biases
    assert figures.sparsity_total == pytest.approx(biases / expected)
    assert figures.sparsity_prunable == 0


def test_zeros_are_counted_by_layer_and_over_all(tiny_config, tiny_model):
    params = jax.tree.map(lambda leaf: leaf + 1.0, tiny_model.params)
    kernel = np.array(params["layers"]["mlp"]["up"]["kernel"])
    kernel[0, :, :32] = 0
    kernel[2, :8] = 0
    params["layers"]["mlp"]["up"]["kernel"] = kernel
    gone = 32 * 32 + 8 * 128
    figures = sparsity_figures(params, tiny_config)
    assert figures.by_layer["layers/mlp/up/kernel"] == (0.25, 0.0, 0.25)
    assert figures.by_layer["layers/mlp/down/kernel"] == (0.0, 0.0, 0.0)
    assert len(figures.by_layer) == 6
    assert figures.parameters - figures.nonzero_parameters == gone
    assert figures.sparsity_total == pytest.approx(gone / figures.parameters)
    prunable = 3 * (4 * 32 * 32 + 2 * 32 * 128)
    assert figures.sparsity_prunable == pytest.approx(gone / prunable)
    masks = masks_from_zeros(params)
    assert sum(int((~mask).sum()) for mask in jax.tree.leaves(masks)) == gone


def test_counts_are_the_same_on_the_host_and_on_devices(tiny_config, tiny_model):
    params = jax.tree.map(np.array, tiny_model.params)
    params["layers"]["mlp"]["up"]["kernel"][1, :2, :3] = (0.0, -0.0, 1e-45)
    params["layers"]["mlp"]["up"]["bias"][2, 1] = 0
    params["embedding"]["tokens"][5] = 0
    on_host = sparsity_figures(params, tiny_config)
    assert on_host == sparsity_figures(jax.tree.map(jnp.asarray, params), tiny_config)
    assert on_host.by_layer["layers/mlp/up/kernel"][1] == pytest.approx(4 / (32 * 128))
