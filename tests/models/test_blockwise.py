"""Blocks run one by one compute what the whole network does, and show what each matrix is given."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ragjax.models.blockwise import embed, layer_of, one_layer, queries_keys_values, run_block
from ragjax.models.decoder import Final
from ragjax.models.linear import Linear
from ragjax.models.run import apply, run_decoder


def test_blocks_one_by_one_are_the_network(kind, of_kind, random_model):
    config = of_kind(kind)
    params = random_model(config).params
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


def test_queries_keys_and_values_are_those_the_block_makes_once_for_each_head(kind, of_kind, random_model):
    config = of_kind(kind)
    params = random_model(config).params
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    ran = run_decoder(config, params, tokens, capture=True)
    np.testing.assert_allclose(ran.embedded, embed(config, params, jnp.asarray(tokens)), rtol=1e-6)
    made = {}

    def look(call, arguments, options, context):
        out = call(*arguments, **options)
        if isinstance(context.module, Linear):
            made[context.module.name] = out
        return out

    for layer in range(config.layers):
        before = ran.layers[layer - 1] if layer else ran.embedded
        block = one_layer(params["layers"], layer)
        with nn.intercept_methods(look):
            run_block(config, block, layer_of(config, layer), before)
        found = queries_keys_values(config, block, before)
        for name, vectors in found._asdict().items():
            heads = made[name].reshape(2, 12, -1, config.head_width)
            each = config.heads // heads.shape[2]
            for head in range(config.heads):
                mine = vectors[..., head * config.head_width : (head + 1) * config.head_width]
                np.testing.assert_allclose(mine, heads[:, :, head // each], rtol=1e-5, atol=1e-6)
