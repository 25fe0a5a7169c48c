"""The sum of the losses against numpy's, and which network each option reaches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Distill
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.models.decoder import init_params, logits
from ragjax.models.run import run_decoder

MIXED = Distill(forward_kl=0.7, cross_entropy=0.2, hidden_mse=0.4, temperature=2.0, chunk_tokens=8)


@pytest.fixture(scope="module")
def teacher_config(tiny_config):
    return replace(tiny_config, layers=6, mlp_width=48)


@pytest.fixture(scope="module")
def both(tiny_config, teacher_config, random_model):
    return init_params(tiny_config, 0), (random_model(teacher_config).params,)


@pytest.fixture(scope="module")
def batch(tiny_config):
    """Two documents in each sequence, and tokens of unlike weight that sum to 1."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, tiny_config.vocab_size, (2, 13)).astype(np.int32)
    weights = rng.random((2, 12)).astype(np.float32)
    segments = np.repeat([[0, 1]], [5, 7], axis=1).repeat(2, 0)
    places = np.concatenate([np.arange(5), np.arange(7)])[None].repeat(2, 0)
    return Batch(text[:, :-1], text[:, 1:], weights / weights.sum(), segments, places)


def log_softmax(scores):
    scores = np.asarray(scores, np.float64)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_the_loss_is_the_weighted_sum_of_its_terms(tiny_config, teacher_config, both, batch):
    def run(config, params):
        places = {"positions": batch.positions, "segments": batch.segments}
        out = run_decoder(config, params, batch.tokens, capture=True, **places)
        return logits(params, out.hidden, config), np.asarray(out.layers, np.float64)

    (own, layers), (scores, others) = run(tiny_config, both[0]), run(teacher_config, both[1][0])
    log_p, log_q = log_softmax(scores / 2), log_softmax(own / 2)
    chosen = np.take_along_axis(log_softmax(own), batch.targets[..., None], -1)[..., 0]
    expected = {
        "cross_entropy": -(batch.weights * chosen).sum(),
        "forward_kl": 4 * (batch.weights * (np.exp(log_p) * (log_p - log_q)).sum(-1)).sum(),
        "hidden_mse": (batch.weights * np.square(layers - others[1::2]).mean((0, 3))).sum(),
    }
    objective = Objective(tiny_config, (teacher_config,), MIXED)
    loss, terms = jax.jit(objective)(
        *both, batch._replace(weights=np.ones_like(batch.weights)), batch.weights
    )
    assert set(terms) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5)
    total = 0.2 * expected["cross_entropy"] + 0.7 * expected["forward_kl"] + 0.4 * expected["hidden_mse"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "needs"),
    [
        (Distill(forward_kl=0.0, cross_entropy=1.0), False),
        (Distill(forward_kl=1.0, cross_entropy=0.0), True),
        (Distill(forward_kl=0.0, cross_entropy=0.0, hidden_mse=1.0), True),
    ],
)
def test_a_teacher_is_needed_where_a_loss_looks_at_it(
    tiny_config, teacher_config, both, batch, weights, needs
):
    objective = Objective(tiny_config, (teacher_config,) if needs else (), weights)
    assert objective.needs_teacher == needs
    loss, terms = objective(both[0], both[1] if needs else (), batch, batch.weights)
    [name] = [name for name in ("forward_kl", "cross_entropy", "hidden_mse") if getattr(weights, name)]
    assert loss == terms[name] > 0
    assert set(terms) == {"cross_entropy", name}


def test_the_student_learns_no_likelihood_of_its_own_words(tiny_config, teacher_config, both, batch):
    def run(written, weights):
        objective = jax.jit(Objective(tiny_config, (teacher_config,), weights))
        return objective(*both, batch._replace(written=jnp.float32(written)), batch.weights)

    (own, told), (text, terms) = run(1, MIXED), run(0, MIXED)
    without, _ = run(1, replace(MIXED, cross_entropy=0.0))
    np.testing.assert_allclose(own, without, rtol=1e-6)
    np.testing.assert_allclose(text - own, 0.2 * terms["cross_entropy"], rtol=1e-4)
    np.testing.assert_allclose(told["cross_entropy"], terms["cross_entropy"], rtol=1e-6)


def test_the_teacher_learns_nothing(tiny_config, teacher_config, both, batch):
    objective = Objective(tiny_config, (teacher_config,), MIXED)
    gradient = jax.grad(objective, argnums=1, has_aux=True)(*both, batch, batch.weights)[0]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_dropout_falls_on_the_student_alone(tiny_config, teacher_config, both, batch):
    drops = {"embedding_dropout": 0.5, "residual_dropout": 0.5}

    def loss(student, teacher):
        objective = Objective(student, (teacher,), MIXED)
        return float(objective(*both, batch, batch.weights, jax.random.key(0))[0])

    exact = loss(tiny_config, teacher_config)
    assert loss(tiny_config, replace(teacher_config, **drops)) == pytest.approx(exact, rel=1e-6)
    assert loss(replace(tiny_config, **drops), teacher_config) != pytest.approx(exact, rel=1e-2)


def test_both_networks_compute_in_the_type_asked_for(
    tiny_config, teacher_config, both, batch, types_of_products
):
    objective = Objective(tiny_config, (teacher_config,), MIXED, dtype=jnp.bfloat16)
    gradient = jax.grad(objective, has_aux=True)
    assert set(types_of_products(gradient, *both, batch, batch.weights)) == {("bf16", "bf16", "f32")}


def test_few_scores_live_at_once_and_shards_sum_apart(tiny_config, teacher_config, both, batch):
    def program(chunk_tokens, **options):
        objective = Objective(
            tiny_config, (teacher_config,), replace(MIXED, chunk_tokens=chunk_tokens), **options
        )
        return jax.jit(jax.grad(objective, has_aux=True)).lower(*both, batch, batch.weights).as_text()

    assert "tensor<24x384xf32>" in program(24)
    assert "tensor<24x384xf32>" not in program(8)
    assert "tensor<2x384x32xf32>" not in program(8)
    apart = program(8, shards=2)
    assert "tensor<2x384x32xf32>" in apart
    # Twice the tokens, as each of two devices holds its own.
    assert "tensor<12x384xf32>" in apart


def test_only_the_student_computes_again(tiny_config, teacher_config, both, batch):
    def kept(remat):
        objective = Objective(tiny_config, (teacher_config,), MIXED, remat=remat)
        pull = jax.vjp(lambda params: objective(params, both[1], batch, batch.weights)[0], both[0])[1]
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pull))

    assert kept("full") < 0.7 * kept("none")
