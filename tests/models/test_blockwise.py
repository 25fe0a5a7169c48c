"""Blocks run one by one compute what the whole network does, and show what each matrix is given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.blockwise import embed, layer_of, one_layer, run_block
from ragjax.models.decoder import Final, init_params
from ragjax.models.decoder_config import DecoderConfig, Rotary
from ragjax.models.run import apply, run_decoder

TINY = DecoderConfig(
    vocab_size=50, positions=12, width=16, layers=2, heads=4, mlp_width=24, initializer_range=0.2
)
KIN = {
    "gpt2": TINY,
    "banded": dataclasses.replace(TINY, windows=(0, 3), scale_attention_by_layer=True),
    "llama": dataclasses.replace(
        TINY, kv_heads=2, rotary=Rotary(), learned_positions=False, norm="rms", gated=True, activation="silu",
        attention_bias=False, attention_out_bias=False, mlp_bias=False, tied=False,
    ),
    "neox": dataclasses.replace(TINY, residual="parallel", rotary=Rotary(width=2), learned_positions=False),
    "opt-350m": dataclasses.replace(TINY, residual="post_norm", final_norm=False, embedding_width=8),
}  # fmt: skip


@pytest.mark.parametrize("name", KIN)
def test_blocks_one_by_one_are_the_network(name):
    config = KIN[name]
    params = init_params(config, seed=0)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    expected = run_decoder(config, params, tokens, capture=True)
    hidden = embed(config, params, jnp.asarray(tokens))
    for layer in range(config.layers):
        block = one_layer(params["layers"], layer)
        run = run_block(config, block, layer_of(config, layer), hidden)
        np.testing.assert_allclose(run.hidden, expected.layers[layer], rtol=1e-4, atol=1e-4)
        kernels = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(block)
            if leaf.ndim == 2
        }
        assert run.inputs.keys() == kernels.keys()
        attended = run.inputs["attention/out/kernel"] @ block["attention"]["out"]["kernel"]
        down = run.inputs["mlp/down/kernel"] @ block["mlp"]["down"]["kernel"]
        if "bias" in block["attention"]["out"]:
            attended, down = attended + block["attention"]["out"]["bias"], down + block["mlp"]["down"]["bias"]
        if config.residual != "post_norm":
            np.testing.assert_allclose(hidden + attended + down, run.hidden, rtol=1e-4, atol=1e-4)
        assert run.inputs["attention/query/kernel"] is run.inputs["attention/value/kernel"]
        assert run.inputs["attention/query/kernel"] is not run.inputs["mlp/up/kernel"]
        hidden = run.hidden
    last = {name: params[name] for name in ("final_norm", "output_projection") if name in params}
    final = apply(Final(config), last, hidden)
    np.testing.assert_allclose(final, expected.hidden, rtol=1e-4, atol=1e-4)
