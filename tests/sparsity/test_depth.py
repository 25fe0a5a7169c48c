"""Depth: the kept layers compute what they computed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.models.attention import causal_mask
from ragjax.models.decoder import Block, Decoder, LayerData, Span, layer_data
from ragjax.models.norm import Norm
from ragjax.sparsity.depth import choose_layers, keep_layers


def test_layers_spread_evenly_with_both_ends():
    assert choose_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert choose_layers(12, 12) == choose_layers(12, None) == tuple(range(12))
    assert choose_layers(48, 2) == (0, 47)
    assert choose_layers(5, 1) == (0,)
    for total in range(1, 20):
        for keep in range(2, total + 1):
            layers = choose_layers(total, keep)
            gaps = np.diff(layers)
            assert layers[0] == 0
            assert layers[-1] == total - 1
            assert gaps.min() >= 1
            assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("keep", [0, 7, -1, (0, 6), (-1, 2), (2, 1), (1, 1), ()])
def test_layers_that_are_not_there_are_refused(keep):
    with pytest.raises(InputError, match=r"student\.layers"):
        choose_layers(6, keep)


def test_chosen_layers_are_taken_as_they_are():
    assert choose_layers(6, (1, 4)) == (1, 4)


@partial(jax.jit, static_argnames=("config", "layers"))
def by_hand(params, config, layers, tokens):
    """Runs only `layers` of the whole model, one by one, each with its own scale and window."""
    order = jnp.arange(tokens.shape[1])[None]
    x = params["embedding"]["tokens"][tokens] + params["embedding"]["positions"][order]
    data = layer_data(config)
    span = Span(order, order, causal_mask(order, order))
    for i in layers:
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        x, _ = Block(config).apply({"params": block}, x, LayerData(data.scale[i], data.window[i]), span)
    return Norm(config).apply({"params": params["final_norm"]}, x)


@pytest.mark.parametrize("windows", [(), (5, 0, 0, 2)])
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("layers", [(0, 3), (1, 2, 3)])
def test_kept_layers_compute_what_they_computed(tiny_config, random_model, windows, by_layer, layers):
    config = dataclasses.replace(
        tiny_config, layers=4, windows=windows, scale_attention_by_layer=by_layer, initializer_range=0.4
    )
    params = random_model(config).params
    tokens = jax.random.randint(jax.random.key(3), (2, 12), 0, config.vocab_size)
    kept, smaller = keep_layers(params, config, layers)
    assert smaller.layers == len(layers)
    assert smaller.layer_windows == tuple(config.layer_windows[i] for i in layers)
    hidden = jax.jit(Decoder(smaller).apply)({"params": kept}, tokens).hidden
    np.testing.assert_allclose(hidden, by_hand(params, config, layers, tokens), atol=2e-5)


def test_keeping_layers_leaves_the_teacher_alone(tiny_config, tiny_model):
    config = dataclasses.replace(tiny_config, scale_attention_by_layer=True)
    before = jax.tree.map(np.array, tiny_model.params)
    kept, _ = keep_layers(tiny_model.params, config, (1,))
    jax.tree.map(np.testing.assert_array_equal, tiny_model.params, before)
    assert kept["layers"]["attention"]["query"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(
        kept["layers"]["mlp"]["up"]["kernel"], before["layers"]["mlp"]["up"]["kernel"][1:2]
    )


def test_layers_out_of_range_are_refused(tiny_config, tiny_model):
    with pytest.raises(InputError, match="found \\(0, 3\\)"):
        keep_layers(tiny_model.params, tiny_config, (0, 3))
