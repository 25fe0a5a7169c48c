"""Importance against plain statements of the formulas, and what is chosen by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.blockwise import embed, layer_of, one_layer, run_block
from ragjax.models.decoder import logits
from ragjax.models.run import run_decoder
from ragjax.sparsity.calibrated.calibration import Calibration
from ragjax.sparsity.shrink import IMPORTANCE, Importance, Sizes, Subject, select
from ragjax.sparsity.shrink.weight_importance import magnitude


def measured(name, model, text=None, seed=0, mesh=None):
    subject = Subject(model.config, model.params, Calibration(text, mesh), seed)
    return IMPORTANCE[name].measure(subject, lambda done, of: None)


@pytest.mark.parametrize("name", IMPORTANCE)
def test_every_criterion_rates_every_part_by_a_positive_number(name, grouped, text):
    found, config = measured(name, grouped, text), grouped.config
    assert found.neurons.shape == (config.layers, config.mlp_width)
    assert found.heads.shape == (config.layers, config.heads)
    assert found.features.shape == (config.width,)
    assert found.layers.shape == (config.layers,)
    assert all((each > 0).all() for each in found)


def test_activation_is_minitrons(gpt2, text):
    config, sequences = gpt2.config, text.reshape(-1, text.shape[-1])
    found = measured("activation", gpt2, text)
    hidden, features = embed(config, gpt2.params, jnp.asarray(sequences)), np.zeros(config.width)
    run = jax.jit(lambda block, data, x: run_block(config, block, data, x))
    for layer in range(config.layers):
        block = one_layer(gpt2.params["layers"], layer)
        after = run(block, layer_of(config, layer), hidden)
        given = {name: np.asarray(x, np.float64) for name, x in after.inputs.items()}
        neurons = [[abs(s[:, n]).mean() for n in range(20)] for s in given["mlp/down/kernel"]]
        np.testing.assert_allclose(found.neurons[layer], np.linalg.norm(neurons, axis=0), rtol=1e-4)
        heads = [
            [np.linalg.norm(s[:, 4 * h : 4 * h + 4], axis=1).mean() for h in range(6)]
            for s in given["attention/out/kernel"]
        ]
        np.testing.assert_allclose(found.heads[layer], np.linalg.norm(heads, axis=0), rtol=1e-4)
        for name in ("attention/query/kernel", "mlp/up/kernel"):
            features += np.sqrt((abs(given[name]).mean(1) ** 2).sum(0))
        before, handed_on = (np.asarray(x, np.float64).reshape(-1, 24) for x in (hidden, after.hidden))
        cosines = [
            a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(before, handed_on, strict=True)
        ]
        np.testing.assert_allclose(found.layers[layer], 1 - np.mean(cosines), rtol=1e-3)
        hidden = after.hidden
    np.testing.assert_allclose(found.features, features, rtol=1e-4)


def test_taylor_is_the_slope_of_the_loss_along_each_gate(grouped, text):
    config, params = grouped.config, jax.tree.map(jnp.asarray, grouped.params)
    sequences = text.reshape(-1, text.shape[-1])
    found = measured("taylor", grouped, text)

    @jax.jit
    def losses(neuron, head, feature, layer):
        """Of all sequences, with gates on one part of each kind in layer 1."""
        blocks = jax.tree.map(lambda leaf: leaf, params["layers"])
        rows = jnp.ones(20).at[3].set(neuron) * layer
        blocks["mlp"]["down"]["kernel"] = blocks["mlp"]["down"]["kernel"].at[1].multiply(rows[:, None])
        values = jnp.ones(24).at[8:12].set(head) * layer
        blocks["attention"]["out"]["kernel"] = (
            blocks["attention"]["out"]["kernel"].at[1].multiply(values[:, None])
        )
        for number, (norm, at) in enumerate((n, a) for n in ("attention_norm", "mlp_norm") for a in range(3)):
            blocks[norm]["scale"] = blocks[norm]["scale"].at[at, 5].multiply(feature[number])
        whole = {**params, "layers": blocks}
        scores = jax.nn.log_softmax(
            logits(whole, run_decoder(config, whole, sequences).hidden[:, :-1], config)
        )
        return -jnp.take_along_axis(scores, sequences[:, 1:, None], -1).mean((1, 2))

    ones = (1.0, 1.0, jnp.ones(6), 1.0)
    neuron, head, feature, layer = jax.jacrev(losses, argnums=(0, 1, 2, 3))(*ones)
    for slope, told in (
        (neuron, found.neurons[1, 3]), (head, found.heads[1, 2]), (layer, found.layers[1]),
    ):  # fmt: skip
        np.testing.assert_allclose(told, np.abs(slope).mean(), rtol=1e-3)
    np.testing.assert_allclose(found.features[5], np.abs(feature).mean(0).sum(), rtol=1e-3)


def test_magnitude_is_the_norm_of_all_weights_that_would_go(grouped):
    found, config = magnitude(grouped.config, grouped.params), grouped.config
    blocks = grouped.params["layers"]
    attention, mlp = (
        {n: np.asarray(p["kernel"], np.float64) for n, p in blocks[k].items()} for k in ("attention", "mlp")
    )
    neuron = np.concatenate([mlp["up"][1, :, 3], mlp["gate"][1, :, 3], mlp["down"][1, 3]])
    assert found.neurons[1, 3] == pytest.approx(np.linalg.norm(neuron), rel=1e-5)
    # Head 3 is the second of the group of keys and values 1.
    own = (attention["query"][1][:, 12:16] ** 2).sum() + (attention["out"][1][12:16] ** 2).sum()
    shared = sum((attention[name][1][:, 4:8] ** 2).sum() for name in ("key", "value"))
    assert found.heads[1, 3] == pytest.approx(np.sqrt(own + shared / 2), rel=1e-5)
    layer = sum((kernel[2] ** 2).sum() for kernel in (*attention.values(), *mlp.values()))
    assert found.layers[2] == pytest.approx(np.sqrt(layer), rel=1e-5)
    feature = [grouped.params["embedding"]["tokens"][:, 7], grouped.params["head"][:, 7]]
    feature += [
        grouped.params["final_norm"]["scale"][7],
        *(blocks[f"{n}_norm"]["scale"][:, 7] for n in ("mlp", "attention")),
    ]
    feature += [attention[name][:, 7] for name in ("query", "key", "value")] + [attention["out"][..., 7]]
    feature += [mlp[name][:, 7] for name in ("up", "gate")] + [mlp["down"][..., 7]]
    assert found.features[7] == pytest.approx(
        np.sqrt(sum((np.asarray(f) ** 2).sum() for f in feature)), rel=1e-5
    )
    assert found.features.shape == (config.width,)


def test_random_importance_follows_its_seed(gpt2):
    first, again, other = (measured("random", gpt2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.neurons, again.neurons)
    assert (first.neurons != other.neurons).all()


def test_each_layer_keeps_its_own_best_in_order(grouped):
    neurons = np.zeros((3, 20))
    neurons[0, [4, 11]] = neurons[2, [19, 0]] = 1
    heads = np.array([[0, 9, 5, 0, 4, 4], [0] * 6, [1, 2, 3, 4, 5, 6.0]])
    importance = Importance(neurons, heads, np.arange(24)[::-1], np.array([2.0, 1, 3]))
    kept = select(importance, grouped.config, Sizes(2, 5, 2, 2, 2))
    assert kept.layers.tolist() == [0, 2]
    assert kept.neurons.tolist() == [[4, 11], [0, 19]]
    # Of every group the better head; then the groups whose better heads are best.
    assert kept.heads.tolist() == [[1, 2], [3, 5]]
    assert kept.groups.tolist() == [[0, 1], [1, 2]]
    assert kept.features.tolist() == [0, 1, 2, 3, 4]
    whole = select(importance, grouped.config, Sizes(1, 24, 4, 2, 20))
    # Whole groups: 4 + 4 is more than 5 + 0, and 9 + 0 more than either.
    assert select(
        importance._replace(layers=np.array([3.0, 2, 1])), grouped.config, Sizes(1, 24, 4, 2, 20)
    ).heads.tolist() == [[0, 1, 4, 5]]
    assert whole.heads.tolist() == [[2, 3, 4, 5]]
