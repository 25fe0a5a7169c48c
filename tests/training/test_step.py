"""The step computes one gradient, however it is cut: microbatches, devices, padding."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ragjax.config import Distill, Mesh, Sparsity
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import batch_shards, make_mesh
from ragjax.parallel.rules import place
from ragjax.sparsity import sparsify
from ragjax.training.state import init_state
from ragjax.training.step import make_step

MIXED = Distill(forward_kl=0.7, cross_entropy=0.3, hidden_mse=0.1, temperature=2.0, chunk_tokens=16)


def make_batch(config, *, microbatches=1, rows=8, seq=16, seed=0, padded=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, config.vocab_size, (rows, seq + 1))
    weights = np.ones((rows, seq), np.float32)
    if padded:
        weights[:, -padded:] = 0
    shape = (microbatches, rows // microbatches, seq)
    return Batch(
        text[:, :-1].reshape(shape).astype(np.int32),
        text[:, 1:].reshape(shape).astype(np.int32),
        weights.reshape(shape),
        None,
        None,
    )


@pytest.fixture(scope="module")
def teacher(tiny_config):
    return init_params(tiny_config, seed=7)


def run(
    config, teacher, batches, *, mesh=None, weights=MIXED, sparsity=None, optimizer=None, clip=1.0, seed=0
):
    mesh = mesh or make_mesh(Mesh(), jax.devices()[:1])
    optimizer = optimizer or optax.adamw(1e-2)
    optimizer = sparsify(optimizer, sparsity or Sparsity(), total_steps=len(batches), seed=0)
    objective = Objective(config, (config,), weights, shards=batch_shards(mesh))
    losses = []
    with jax.set_mesh(mesh):
        step = make_step(objective, optimizer, clip=clip, seed=seed)
        state = init_state(init_params(config, 0), optimizer, mesh)
        teachers = () if teacher is None else (place(teacher, mesh),)
        for batch in batches:
            spec = jax.sharding.PartitionSpec(None, ("data", "fsdp"))
            batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, spec))
            state, metrics = step(state, teachers, batch)
            losses.append(float(metrics.loss))
    return jax.device_get(state), losses, jax.device_get(metrics)


def assert_same(one, other, rtol=1e-5, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), one, other)


@pytest.mark.parametrize(
    "layout",
    [
        (2, 2, 2),
        pytest.param((8, 1, 1), marks=pytest.mark.slow),
        pytest.param((2, 4, 1), marks=pytest.mark.slow),
        pytest.param((1, 2, 4), marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_losses_of_one(tiny_config, teacher, layout):
    batches = [make_batch(tiny_config, seed=s) for s in range(5)]
    sparsity = Sparsity(target=0.5, stop=3, every=1)
    alone, losses, _ = run(tiny_config, teacher, batches, sparsity=sparsity)
    mesh = make_mesh(Mesh(*layout))
    shared, shared_losses, _ = run(tiny_config, teacher, batches, mesh=mesh, sparsity=sparsity)
    np.testing.assert_allclose(shared_losses, losses, rtol=1e-5)
    masks, shared_masks = (optax.tree.get(s.opt_state, "masks") for s in (alone, shared))
    for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(shared_masks), strict=True):
        assert a.sum() == b.sum()


def test_microbatches_sum_to_the_gradient_of_the_whole(tiny_config, teacher):
    """Also where they hold different numbers of real tokens."""
    whole = make_batch(tiny_config)
    whole.weights[0, :5] = 0
    whole.weights[0, 6, 3:] = 0
    parts = jax.tree.map(lambda x: x.reshape(4, 2, -1), whole)
    sgd = optax.sgd(0.1)
    one, losses, _ = run(tiny_config, teacher, [whole], optimizer=sgd, clip=0)
    four, part_losses, _ = run(tiny_config, teacher, [parts], optimizer=sgd, clip=0)
    np.testing.assert_allclose(part_losses, losses, rtol=1e-6)
    assert_same(one.params, four.params)


def test_padding_changes_nothing(tiny_config, teacher):
    short = make_batch(tiny_config, seq=12)
    padded = make_batch(tiny_config, seq=16, padded=4)
    for name in ("tokens", "targets"):
        getattr(padded, name)[..., :12] = getattr(short, name)
        getattr(padded, name)[..., 12:] = 1
    sgd = optax.sgd(0.1)
    one, losses, _ = run(tiny_config, teacher, [short], optimizer=sgd)
    two, padded_losses, metrics = run(tiny_config, teacher, [padded], optimizer=sgd)
    assert metrics.tokens == 8 * 12
    np.testing.assert_allclose(padded_losses, losses, rtol=1e-6)
    assert_same(one.params, two.params)


def test_clipping_bounds_the_update_and_leaves_a_smaller_one_alone(tiny_config, teacher):
    before = init_params(tiny_config, 0)
    for clip in (0.5, 1e3):
        after, _, metrics = run(
            tiny_config, teacher, [make_batch(tiny_config)], optimizer=optax.sgd(1.0), clip=clip
        )
        assert 0.5 < metrics.gradient_norm < 1e3
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, before))
        np.testing.assert_allclose(moved, min(clip, metrics.gradient_norm), rtol=1e-4)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny_config, teacher):
    good, bad = make_batch(tiny_config), make_batch(tiny_config, seed=1)
    bad.weights[0, 0, 0] = np.nan
    sparsity = Sparsity(target=0.5, stop=0, every=1)
    expected, _, _ = run(tiny_config, teacher, [good], sparsity=sparsity)
    state, _, metrics = run(tiny_config, teacher, [good, bad, bad], sparsity=sparsity)
    assert (int(metrics.skipped), int(metrics.bad_in_a_row), int(state.step)) == (2, 2, 3)
    assert_same(state.params, expected.params, rtol=0, atol=0)
    assert_same(state.opt_state, expected.opt_state, rtol=0, atol=0)
    state, _, metrics = run(tiny_config, teacher, [good, bad, good], sparsity=sparsity)
    assert (int(metrics.skipped), int(metrics.bad_in_a_row)) == (1, 0)


def test_without_a_teacher_the_loss_is_the_negative_log_likelihood(tiny_model):
    batch = make_batch(tiny_model.config)
    _, losses, metrics = run(
        tiny_model.config, tiny_model.params, [batch], weights=Distill(forward_kl=0.0, cross_entropy=1.0)
    )
    scores = np.asarray(tiny_model(batch.tokens[0]), np.float64)
    log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, batch.targets[0][..., None], -1).mean()
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)
    assert set(metrics.terms) == {"cross_entropy"}


def test_a_student_equal_to_its_teacher_learns_nothing_from_it(tiny_model):
    weights = Distill(forward_kl=1.0, cross_entropy=0.0, hidden_mse=1.0)
    _, losses, metrics = run(
        tiny_model.config, tiny_model.params, [make_batch(tiny_model.config)], weights=weights
    )
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert metrics.gradient_norm < 1e-4


def test_dropout_is_a_function_of_seed_step_and_microbatch(tiny_config):
    shape = dataclasses.replace(tiny_config, layers=1)
    batch = make_batch(shape, rows=2)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
    text = Distill(forward_kl=0.0, cross_entropy=1.0)

    def losses(*batches, seed=0, **dropout):
        dropped = dataclasses.replace(shape, **dropout)
        return run(dropped, None, batches, weights=text, optimizer=optax.sgd(0.0), seed=seed)[1]

    (without,) = losses(batch)
    found = losses(batch, batch, residual_dropout=0.3)
    assert losses(batch, batch, residual_dropout=0.3) == found
    found += losses(batch, residual_dropout=0.3, seed=1)
    found += losses(twice, residual_dropout=0.3)
    found += losses(batch, attention_dropout=0.3)
    found += losses(batch, embedding_dropout=0.3)
    # All differ, and by more than rounding.
    assert np.diff(sorted([without, *found])).min() > 1e-6 * without


def test_half_precision_stays_near_single(tiny_config, teacher):
    batch = make_batch(tiny_config)
    tokens = jax.tree.map(lambda x: x[0], batch)
    weights = tokens.weights / tokens.weights.sum()
    params = init_params(tiny_config, 0)
    full, half = (
        jax.jit(jax.value_and_grad(Objective(tiny_config, (tiny_config,), MIXED, dtype=dtype), has_aux=True))(
            params, (teacher,), tokens, weights
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_allclose(half[0][0], full[0][0], rtol=2e-2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half[1]))
    error = optax.tree.norm(jax.tree.map(jnp.subtract, half[1], full[1])) / optax.tree.norm(full[1])
    assert 0.0005 < error < 0.05
