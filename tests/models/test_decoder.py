"""The network against transformers' own, and against what it promises."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.interchange import load
from ragjax.interchange.families import family_for
from ragjax.interchange.layout import tensor_reader
from ragjax.models.activations import ACTIVATIONS
from ragjax.models.decoder import Decoder, init_params, logits
from ragjax.models.decoder_config import DecoderConfig

ODD_CONFIGS = {
    "plain": {},
    "one_layer": {"n_layer": 1, "vocab_size": 128},
    "one_head": {"n_head": 1, "n_embd": 10, "vocab_size": 257},
    "narrow_mlp": {"n_inner": 7, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False, "vocab_size": 131},
    "unscaled": {"scale_attn_weights": False},
    "by_layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
    "by_layer_only": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_layer": 3},
    "upcast": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "epsilon": {"layer_norm_epsilon": 0.05, "activation_function": "gelu"},
}


def forward(params, tokens, config, **options):
    options = (
        {"positions": options.pop("positions", None), "segments": options.pop("segments", None)},
        options,
    )
    hidden = Decoder(config, **options[1]).apply({"params": params}, tokens, **options[0]).hidden
    return logits(params, hidden, config)


@partial(jax.jit, static_argnames=("config", "remat", "dtype"))
def loss(params, tokens, config, remat="none", dtype=jnp.float32):
    scores = forward(params, tokens, config, remat=remat, dtype=dtype)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores[:, :-1]), tokens[:, 1:, None], -1)
    return -chosen.mean()


def some_tokens(config, shape=(2, 13), seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


@pytest.mark.parametrize("fields", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_logits_loss_and_every_gradient_are_those_of_transformers(torch_gpt2, tmp_path, fields):
    import torch

    theirs = torch_gpt2(**fields)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens = some_tokens(ours.config)
    told = theirs(torch.tensor(tokens), labels=torch.tensor(tokens))
    told.loss.backward()

    assert np.abs(np.asarray(ours(tokens)) - told.logits.detach().numpy()).max() < 1e-4
    value, gradients = jax.value_and_grad(loss)(ours.params, tokens, ours.config)
    assert abs(float(value) - told.loss.item()) < 1e-5 * max(1, told.loss.item())
    read = tensor_reader(gradients, family_for(ours.config).layout(ours.config))
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
        largest = np.abs(expected).max()
        assert np.abs(read(name) - expected).max() < 1e-4 * largest, name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_computed_inside_the_network_as_in_transformers(torch_gpt2, tmp_path, name):
    import torch

    theirs = torch_gpt2(n_layer=1, n_embd=6, activation_function=name)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens = some_tokens(ours.config, (1, 8))
    expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
    assert np.abs(np.asarray(ours(tokens)) - expected).max() < 1e-4


def numpy_decoder(params, config, tokens):
    """Logits in float64, position by position and head by head, from the papers' formulas."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, q):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_epsilon) * q[
            "scale"
        ] + q["bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    rows = []
    for row in tokens:
        x = p["embedding"]["tokens"][row] + p["embedding"]["positions"][: len(row)]
        for i in range(config.layers):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
            attention, normed = layer["attention"], norm(x, layer["attention_norm"])
            q, k, v = (
                normed @ attention[n]["kernel"] + attention[n]["bias"] for n in ("query", "key", "value")
            )
            mixed = np.zeros_like(x)
            window = config.windows[i % len(config.windows)] if config.windows else 0
            for head in range(config.heads):
                at = slice(head * config.head_width, (head + 1) * config.head_width)
                for t in range(len(row)):
                    first = max(0, t - window + 1) if window else 0
                    scores = q[t, at] @ k[first : t + 1, at].T / np.sqrt(config.head_width)
                    weights = np.exp(scores - scores.max())
                    mixed[t, at] = weights @ v[first : t + 1, at] / weights.sum()
            x = x + mixed @ attention["out"]["kernel"] + attention["out"]["bias"]
            up = norm(x, layer["mlp_norm"]) @ layer["mlp"]["up"]["kernel"] + layer["mlp"]["up"]["bias"]
            x = x + gelu(up) @ layer["mlp"]["down"]["kernel"] + layer["mlp"]["down"]["bias"]
        rows.append(norm(x, p["final_norm"]) @ p["embedding"]["tokens"][: config.vocab_size].T)
    return np.stack(rows)


@pytest.mark.parametrize("windows", [(), (4,), (0, 3), (1, 0, 5), (0, 0, 2, 9)])
def test_banded_attention_equals_the_formulas_in_float64(tiny_config, windows, random_model):
    config = replace(tiny_config, windows=windows)
    params = random_model(config, spread=0.2).params
    tokens = some_tokens(config)
    expected = numpy_decoder(params, config, tokens)
    assert np.abs(np.asarray(forward(params, tokens, config)) - expected).max() < 1e-4


def test_a_window_as_long_as_the_sequence_is_dense(tiny_config, tiny_model):
    tokens = some_tokens(tiny_config)
    banded = forward(tiny_model.params, tokens, replace(tiny_config, windows=(tokens.shape[1],)))
    np.testing.assert_array_equal(banded, forward(tiny_model.params, tokens, tiny_config))


def influence(params, tokens, config, **options):
    """[t, t'] size of the gradient of the logits at t by what enters at position t'."""

    def score(places):
        moved = {**params, "embedding": {**params["embedding"], "positions": places}}
        scores = forward(moved, tokens, config, **options)[0]
        return (scores * jnp.cos(jnp.arange(scores.shape[-1]))).sum(-1)

    jacobian = jax.jacrev(score)(params["embedding"]["positions"])
    return np.abs(np.asarray(jacobian, np.float64)).sum(-1)[:, : tokens.shape[1]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_position_is_moved_by_a_later_one(tiny_config, tiny_model, dtype):
    felt = influence(tiny_model.params, some_tokens(tiny_config, (1, 9)), tiny_config, dtype=dtype)
    later = np.triu(np.ones_like(felt, bool), 1)
    assert (felt[later] == 0).all()
    assert (felt[~later] > 0).all()


def test_a_window_hides_what_lies_before_it(tiny_config, random_model):
    config = replace(tiny_config, layers=1, windows=(3,))
    felt = influence(random_model(config).params, some_tokens(config, (1, 9)), config)
    distance = np.arange(9)[:, None] - np.arange(9)
    np.testing.assert_array_equal(felt > 0, (distance >= 0) & (distance < 3))


def test_documents_packed_together_are_computed_as_if_alone(tiny_config, tiny_model):
    first, second = some_tokens(tiny_config, (1, 5)), some_tokens(tiny_config, (1, 8), seed=1)
    packed = forward(
        tiny_model.params,
        np.concatenate([first, second], axis=1),
        tiny_config,
        positions=np.concatenate([np.arange(5), np.arange(8)])[None],
        segments=np.repeat([1, 2], [5, 8])[None],
    )
    alone = [forward(tiny_model.params, tokens, tiny_config) for tokens in (first, second)]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=1e-5)


def test_segments_and_windows_hold_together(tiny_config, random_model):
    config = replace(tiny_config, windows=(3,))
    params = random_model(config).params
    first, second = some_tokens(config, (1, 5)), some_tokens(config, (1, 8), seed=1)
    packed = forward(
        params,
        np.concatenate([first, second], axis=1),
        config,
        positions=np.concatenate([np.arange(5), np.arange(8)])[None],
        segments=np.repeat([0, 1], [5, 8])[None],
    )
    alone = [forward(params, tokens, config) for tokens in (first, second)]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_pad_the_vocabulary_are_never_seen(tiny_config, tied, random_model):
    config = replace(tiny_config, tied=tied)
    params = random_model(config).params
    tokens = some_tokens(config)
    scores = forward(params, tokens, config)
    assert scores.shape == (*tokens.shape, 300)
    assert scores.dtype == jnp.float32

    tables = {"embedding": "tokens"} if tied else {"embedding": "tokens", "head": None}
    gradients = jax.grad(loss)(params, tokens, config)
    spoiled = jax.tree.map(lambda x: x, params)
    for group, name in tables.items():
        table, gradient = (tree[group] if name is None else tree[group][name] for tree in (params, gradients))
        assert table.shape[0] == 384
        assert (table[300:] == 0).all()
        assert (gradient[300:] == 0).all()
        loud = table.at[300:].set(1e6)
        spoiled[group] = loud if name is None else {**spoiled[group], name: loud}
    np.testing.assert_array_equal(forward(spoiled, tokens, config), scores)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_computing_again_in_the_backward_pass_changes_no_gradient(tiny_config, tiny_model, remat):
    tokens = some_tokens(tiny_config)
    kept = jax.grad(loss)(tiny_model.params, tokens, tiny_config)
    again = jax.grad(loss)(tiny_model.params, tokens, tiny_config, remat=remat)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), again, kept)


def test_bfloat16_stays_within_two_percent_of_the_largest_logit(tiny_config, tiny_model):
    tokens = some_tokens(tiny_config, (4, 32))
    exact = np.asarray(forward(tiny_model.params, tokens, tiny_config))
    rough = forward(tiny_model.params, tokens, tiny_config, dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    error = np.abs(np.asarray(rough) - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.02
    value, gradients = jax.value_and_grad(loss)(tiny_model.params, tokens, tiny_config, dtype=jnp.bfloat16)
    assert abs(value - loss(tiny_model.params, tokens, tiny_config)) < 0.01
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_acts_only_while_training_and_by_its_key(tiny_config, tiny_model, name):
    config = replace(tiny_config, **{name: 0.3})
    params, tokens = tiny_model.params, some_tokens(tiny_config)
    np.testing.assert_array_equal(forward(params, tokens, config), forward(params, tokens, tiny_config))

    @jax.jit
    def value_and_grad(params, seed):
        def score(params):
            rngs = {"dropout": jax.random.key(seed)}
            decoder = Decoder(config, deterministic=False)
            return jnp.square(decoder.apply({"params": params}, tokens, rngs=rngs).hidden).mean()

        return jax.value_and_grad(score)(params)

    (one, gradients), (same, _), (other, _) = (value_and_grad(params, seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_training_without_dropout_needs_no_key(tiny_config, tiny_model):
    tokens = some_tokens(tiny_config)
    trained = forward(tiny_model.params, tokens, tiny_config, deterministic=False)
    np.testing.assert_array_equal(trained, forward(tiny_model.params, tokens, tiny_config))


@pytest.mark.parametrize("branch", ["attention/out", "mlp/down"])
def test_both_branches_drop_what_they_add_and_layers_share_no_mask(tiny_config, branch):
    config = replace(tiny_config, layers=2, residual_dropout=0.5)
    params = init_params(config, 0)
    # Blocks that add the same constant, so that each block's output shows its mask.
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])
    part, projection = branch.split("/")
    params["layers"][part][projection]["bias"] += 1.0
    tokens = some_tokens(config, (1, 16))
    out = Decoder(config, deterministic=False, capture=True).apply(
        {"params": params}, tokens, rngs={"dropout": jax.random.key(0)}
    )
    start = params["embedding"]["tokens"][tokens] + params["embedding"]["positions"][:16]
    first, second = out.layers[0] - start, out.layers[1] - out.layers[0]
    for added in (first, second):
        np.testing.assert_allclose(np.unique(np.round(added, 3)), [0, 2], atol=1e-3)
    assert 0.3 < float((jnp.round(first) != jnp.round(second)).mean()) < 0.7


def test_captured_layers_end_in_what_the_last_norm_reads(tiny_config, tiny_model):
    tokens = some_tokens(tiny_config)
    out = Decoder(tiny_config, capture=True).apply({"params": tiny_model.params}, tokens)
    plain = Decoder(tiny_config).apply({"params": tiny_model.params}, tokens)
    assert plain.layers is None
    assert out.layers.shape == (3, *tokens.shape, 32)
    np.testing.assert_array_equal(out.hidden, plain.hidden)
    last = np.asarray(out.layers[-1], np.float64)
    centred = last - last.mean(-1, keepdims=True)
    np.testing.assert_allclose(out.hidden, centred / np.sqrt(last.var(-1, keepdims=True) + 1e-5), atol=1e-5)


def test_new_weights_have_gpt2s_spread():
    config = DecoderConfig(500, positions=64, width=128, layers=8, heads=4, mlp_width=512)
    params = init_params(config, 3)
    layers = params["layers"]
    for kernel, spread in (
        (layers["attention"]["query"]["kernel"], 0.02),
        (layers["mlp"]["up"]["kernel"], 0.02),
        (layers["attention"]["out"]["kernel"], 0.02 / 4),
        (layers["mlp"]["down"]["kernel"], 0.02 / 4),
        (params["embedding"]["tokens"][:500], 0.02),
        (params["embedding"]["positions"], 0.02),
    ):
        assert abs(float(kernel.std()) / spread - 1) < 0.03
    assert not np.array_equal(layers["mlp"]["up"]["kernel"][0], layers["mlp"]["up"]["kernel"][1])


def test_unknown_choices_are_refused_all_at_once(tiny_config):
    with pytest.raises(InputError, match=r"(?s)norm must be one of layer, rms, .*residual must be one of"):
        replace(tiny_config, norm="rmsnorm", residual="postnorm")
