from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.run import run_decoder


@pytest.fixture(scope="module")
def tokens(tiny_config):
    return np.random.default_rng(0).integers(0, tiny_config.vocab_size, (2, 8)).astype(np.int32)


def test_a_document_is_read_as_if_it_stood_alone(tiny_config, tiny_model, tokens):
    places = np.array([[0, 1, 2, 0, 1, 2, 3, 4]])
    segments = np.array([[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    both = run_decoder(tiny_config, tiny_model.params, tokens, positions=places, segments=segments)
    second = run_decoder(tiny_config, tiny_model.params, tokens[:, 3:])
    np.testing.assert_allclose(both.hidden[:, 3:], second.hidden, atol=1e-5)


def test_dropout_falls_only_where_a_key_is_given(tiny_config, tiny_model, tokens):
    config = replace(tiny_config, residual_dropout=0.5)
    plain = run_decoder(tiny_config, tiny_model.params, tokens).hidden
    still = run_decoder(config, tiny_model.params, tokens).hidden
    dropped = run_decoder(config, tiny_model.params, tokens, dropout_key=jax.random.key(0)).hidden
    np.testing.assert_array_equal(still, plain)
    assert np.abs(dropped - plain).max() > 0.1


def test_the_output_of_each_block_comes_only_where_asked_for(tiny_config, tiny_model, tokens):
    assert run_decoder(tiny_config, tiny_model.params, tokens).layers is None
    layers = run_decoder(tiny_config, tiny_model.params, tokens, capture=True).layers
    assert layers.shape == (tiny_config.layers, *tokens.shape, tiny_config.width)


def test_the_blocks_compute_in_the_type_asked_for(tiny_config, tiny_model, tokens):
    out = run_decoder(tiny_config, tiny_model.params, tokens, dtype=jnp.bfloat16, remat="full")
    assert out.hidden.dtype == jnp.bfloat16


def kept_for_backward(config, params, tokens, **options):
    """What stays alive between the forward and the backward pass."""
    pull = jax.vjp(lambda params: run_decoder(config, params, tokens, **options).hidden, params)[1]
    return jax.tree.leaves(pull)


def test_what_is_computed_again_is_not_kept(tiny_config, tiny_model, tokens):
    sizes = [
        sum(x.nbytes for x in kept_for_backward(tiny_config, tiny_model.params, tokens, remat=remat))
        for remat in ("none", "dots", "full")
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def products(config, params, tokens, **options):
    def loss(params):
        return run_decoder(config, params, tokens, **options).hidden.sum()

    cost = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()
    return cost["flops"]


def test_the_products_that_are_kept_are_not_made_again(tiny_config, tiny_model, tokens):
    none, dots, full = (
        products(tiny_config, tiny_model.params, tokens, remat=remat) for remat in ("none", "dots", "full")
    )
    # Of a scan, one turn is counted. Nothing needs the last product of a block again.
    kernels = jax.tree.leaves(tiny_model.params["layers"])
    again = sum(x[0].size for x in kernels if x.ndim == 3) - tiny_config.width * tiny_config.mlp_width
    assert full - dots >= 2 * tokens.size * again
    assert dots > none


def test_what_layers_keep_in_16_bits_is_kept_as_integers(tiny_config, tiny_model, tokens):
    """XLA's CPU backend turns a stack of bfloat16 to float32 before it takes a layer out."""
    kept = kept_for_backward(tiny_config, tiny_model.params, tokens, dtype=jnp.bfloat16)
    stacked = {x.dtype.name for x in kept if x.shape[:3] == (tiny_config.layers, *tokens.shape)}
    assert "uint16" in stacked
    assert "bfloat16" not in stacked
