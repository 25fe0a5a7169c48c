"""A cut model computes what the whole one does with the removed parts masked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ragjax.model import Model
from ragjax.models.blockwise import embed, layer_of, one_layer, run_block
from ragjax.models.decoder import Final, init_params, logits
from ragjax.models.norm import Norm
from ragjax.models.run import apply
from ragjax.sparsity.calibrated.calibration import Calibration
from ragjax.sparsity.shrink import Kept, cut, cut_and_refit, select, sizes_of
from ragjax.sparsity.shrink.weight_importance import random

SMALLER = {
    "neurons": {"mlp_width": 7},
    "heads": {"heads": 4, "kv_heads": 2},
    "width": {"width": 13},
    "layers": {"layers": 2},
    "together": {"layers": 2, "width": 14, "heads": 2, "kv_heads": 1, "mlp_width": 9},
}


def kept_of(model, seed=0, **smaller) -> Kept:
    """Random parts to keep."""
    sizes = sizes_of(model.config)._replace(**smaller)
    if "heads" in smaller and model.config.kv_heads is None:
        sizes = sizes._replace(kv_heads=sizes.heads)
    return select(random(model.config, seed), model.config, sizes)


def masked(model, kept: Kept, tokens):
    """Logits of the whole model: removed parts put out zeros, removed layers hand on what they are given,
    and norms take mean and variance over the kept features, the others being zero."""
    config, head = model.config, model.config.head_width
    lives = np.isin(np.arange(config.width), kept.features)

    def norm(call, arguments, options, context):
        module = context.module
        if not isinstance(module, Norm):
            return call(*arguments, **options)
        (x,) = arguments
        scale = module.get_variable("params", "scale")
        if config.norm == "rms":
            size = jnp.where(lives, x**2, 0).sum(-1, keepdims=True) / lives.sum()
            return jnp.where(lives, x / jnp.sqrt(size + config.norm_epsilon) * scale, 0)
        mean = jnp.where(lives, x, 0).sum(-1, keepdims=True) / lives.sum()
        variance = jnp.where(lives, (x - mean) ** 2, 0).sum(-1, keepdims=True) / lives.sum()
        normal = (x - mean) / jnp.sqrt(variance + config.norm_epsilon)
        return jnp.where(lives, normal * scale + module.get_variable("params", "bias"), 0)

    params = jax.tree.map(jnp.asarray, model.params)

    @jax.jit
    def run(tokens):
        hidden = embed(config, params, tokens) * lives
        for number, layer in enumerate(kept.layers):
            block = one_layer(params["layers"], int(layer))
            values = (kept.heads[number][:, None] * head + np.arange(head)).ravel()
            for projection, stays in (
                (block["attention"]["out"], values),
                (block["mlp"]["down"], kept.neurons[number]),
            ):
                rows = np.isin(np.arange(len(projection["kernel"])), stays)
                projection["kernel"] = projection["kernel"] * rows[:, None] * lives
                if "bias" in projection:
                    projection["bias"] = projection["bias"] * lives
            hidden = run_block(config, block, layer_of(config, int(layer)), hidden).hidden
        last = {name: params[name] for name in ("final_norm", "output_projection") if name in params}
        return logits(params, apply(Final(config), last, hidden), config)

    with nn.intercept_methods(norm):
        return run(jnp.asarray(tokens))


def check_masked_is_shrunk(model, tokens, smaller):
    kept = kept_of(model, **SMALLER[smaller])
    small = cut(model.config, model.params, kept)
    found = Model(small.config, small.params)(tokens)
    np.testing.assert_allclose(found, masked(model, kept, tokens), rtol=2e-4, atol=2e-4)
    expected = dict(SMALLER[smaller])
    if model.config.kv_heads is None and "heads" in expected:
        expected["kv_heads"] = expected["heads"]
    assert sizes_of(small.config) == sizes_of(model.config)._replace(**expected)


def test_masked_is_shrunk_for_every_family(kin, text):
    check_masked_is_shrunk(kin, text[0], "together")


@pytest.mark.parametrize("smaller", ["neurons", "heads", "width", "layers"])
def test_masked_is_shrunk_for_every_part_alone(gpt2, grouped, text, smaller):
    check_masked_is_shrunk(gpt2, text[0], smaller)
    check_masked_is_shrunk(grouped, text[0], smaller)


def test_nothing_removed_is_the_model(kin):
    small = cut(kin.config, kin.params, kept_of(kin))
    assert small.config.spelled_out() == kin.config.spelled_out()
    jax.tree.map(np.testing.assert_array_equal, small.params, kin.params)


def test_nothing_removed_is_not_refit(gpt2, text):
    small = cut_and_refit(gpt2.config, gpt2.params, kept_of(gpt2), Calibration(text))
    jax.tree.map(np.testing.assert_array_equal, small.params, gpt2.params)
    assert small.errors == {}


def test_all_parts_together_can_be_refit(gpt2, text):
    kept = kept_of(gpt2, **SMALLER["together"])
    plain = cut(gpt2.config, gpt2.params, kept)
    refit = cut_and_refit(gpt2.config, gpt2.params, kept, Calibration(text))
    assert refit.config == plain.config
    assert jax.tree.map(jnp.shape, refit.params) == jax.tree.map(jnp.shape, plain.params)
    expected = jax.eval_shape(lambda: init_params(refit.config, 0))
    assert jax.tree.map(jnp.shape, refit.params) == jax.tree.map(lambda leaf: leaf.shape, expected)


def outputs(config, block, data, hidden, name):
    """What a projection of a block puts out."""
    run = jax.jit(lambda x: run_block(config, block, data, x).inputs[f"{name}/kernel"])
    given = np.concatenate([run(x) for x in hidden])
    part, _, last = name.partition("/")
    projection = block[part][last]
    return given @ np.asarray(projection["kernel"]) + np.asarray(projection.get("bias", 0))


def test_refit_is_never_worse_than_left_as_it_was_and_errors_are_what_they_say(kin, text):
    kept = kept_of(kin, heads=4, kv_heads=2, mlp_width=9)
    plain = cut(kin.config, kin.params, kept)
    refit = cut_and_refit(kin.config, kin.params, kept, Calibration(text))
    assert refit.errors.keys() == {"attention/out", "mlp/down"}
    for layers in refit.errors.values():
        assert len(layers) == kin.config.layers
        assert all(after < before for before, after in layers)
    # The first block's attention is given the same before and after.
    hidden = [embed(kin.config, kin.params, jnp.asarray(rows)) for rows in text]
    data = layer_of(kin.config, 0)
    whole = one_layer(kin.params["layers"], 0)
    expected = outputs(kin.config, whole, data, hidden, "attention/out")
    for small, reported in zip((plain, refit), refit.errors["attention/out"][0], strict=True):
        block = one_layer(small.params["layers"], 0)
        found = outputs(small.config, block, data, hidden, "attention/out")
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert abs(error - reported) < 1e-3 * error


def test_the_mlp_is_refit_on_what_the_refit_attention_leads_to(gpt2, text):
    kept = kept_of(gpt2, heads=4, mlp_width=9)
    refit = cut_and_refit(gpt2.config, gpt2.params, kept, Calibration(text))
    small, data = one_layer(refit.params["layers"], 0), layer_of(refit.config, 0)
    hidden = [embed(gpt2.config, gpt2.params, jnp.asarray(rows)) for rows in text]
    # The cut attention before the whole MLP.
    between = {**small, "mlp": one_layer(gpt2.params["layers"], 0)["mlp"]}
    config = dataclasses.replace(refit.config, mlp_width=gpt2.config.mlp_width)
    expected = outputs(config, between, data, hidden, "mlp/down")
    found = outputs(refit.config, small, data, hidden, "mlp/down")
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert abs(error - refit.errors["mlp/down"][0][1]) < 1e-3 * error


def test_the_second_block_is_refit_on_what_the_cut_first_one_hands_on(gpt2, text):
    kept = kept_of(gpt2, mlp_width=5)
    refit = cut_and_refit(gpt2.config, gpt2.params, kept, Calibration(text))
    small = [one_layer(refit.params["layers"], layer) for layer in (0, 1)]
    hidden = [embed(gpt2.config, gpt2.params, jnp.asarray(rows)) for rows in text]
    hidden = [run_block(refit.config, small[0], layer_of(refit.config, 0), x).hidden for x in hidden]
    data = layer_of(gpt2.config, 1)
    expected = outputs(gpt2.config, one_layer(gpt2.params["layers"], 1), data, hidden, "mlp/down")
    found = outputs(refit.config, small[1], data, hidden, "mlp/down")
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert abs(error - refit.errors["mlp/down"][1][1]) < 1e-3 * error
