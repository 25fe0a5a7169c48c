"""SparseGPT against the paper's statement in float64, column by column."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.sparsity.calibrated.sparsegpt import sparsegpt
from ragjax.sparsity.patterns import n_of_m, per_block, per_row, per_tensor

prune = jax.jit(sparsegpt, static_argnames=("pattern", "every"))


def problem(inputs, outputs, matrices=(), tokens=None, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.eye(inputs) + rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    x = (rng.normal(size=(tokens or 4 * inputs, inputs)) @ mix).astype(np.float32)
    return rng.normal(size=(*matrices, inputs, outputs)).astype(np.float32), x.T @ x


def paper(kernel, gram, keep, every):
    """Column by column.

    Args:
      kernel: [in, out].
      gram: X'X.
      keep: from the scores [every, out] of a group of inputs to their mask.
      every: inputs of a group.
    """
    w, h = kernel.astype(np.float64).T, gram.astype(np.float64)
    size = w.shape[1]
    dead = np.diagonal(h) == 0
    h[dead, dead] = np.diagonal(h)[~dead].mean()
    w[:, dead] = 0
    h += 0.01 * np.diagonal(h).mean() * np.eye(size)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    for j in range(size):
        if j % every == 0:
            stays = keep(((w[:, j : j + every] / np.diagonal(upper)[j : j + every]) ** 2).T)
        q = np.where(stays[j % every], w[:, j], 0)
        error = (w[:, j] - q) / upper[j, j]
        w[:, j + 1 :] -= np.outer(error, upper[j, j + 1 :])
        w[:, j] = q
    return w.T


def all_together(sparsity):
    def keep(scores):
        mask = np.ones(scores.size, bool)
        mask[scores.argsort(None, kind="stable")[: round(scores.size * sparsity)]] = False
        return mask.reshape(scores.shape)

    return keep


def by_output(sparsity):
    return lambda s: s.argsort(0, kind="stable").argsort(0) >= round(len(s) * sparsity)


def by_block(sparsity, high, wide):
    def keep(scores):
        rows, columns = (n // size for n, size in zip(scores.shape, (high, wide), strict=True))
        means = scores.reshape(rows, high, columns, wide).mean((1, 3))
        return all_together(sparsity)(means).repeat(high, 0).repeat(wide, 1)

    return keep


def output_error(kernel, pruned, gram):
    change = np.float64(kernel) - np.float64(pruned)
    return np.sum(change * (gram.astype(np.float64) @ change))


def by_magnitude(kernel, pattern, sparsity):
    return np.where(pattern(jnp.abs(kernel), sparsity), kernel, 0)


@pytest.mark.parametrize(("inputs", "every"), [(300, 128), (96, 128), (64, 16), (130, 64)])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_unstructured_is_the_paper(inputs, every, sparsity):
    kernel, gram = problem(inputs, 20)
    found = prune(kernel, gram, per_tensor, sparsity, every=every)
    expected = paper(kernel, gram, all_together(sparsity), every)
    # In float32 two close scores may change places, and move what follows.
    differs = (expected != 0) != np.asarray(found.mask)
    assert differs.mean() < 0.002
    untouched = ~differs.any(0)
    assert untouched.sum() >= 12
    np.testing.assert_allclose(found.kernel[:, untouched], expected[:, untouched], rtol=1e-3, atol=1e-3)
    assert output_error(kernel, found.kernel, gram) == pytest.approx(
        output_error(kernel, expected, gram), rel=3e-3
    )
    # Its order is greedy: where nearly all of a narrow matrix goes, the paper's own may lose to magnitude.
    if sparsity == 0.5:
        by_size = by_magnitude(kernel, per_tensor, sparsity)
        assert output_error(kernel, found.kernel, gram) < output_error(kernel, by_size, gram)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 5)])
def test_n_of_m_is_the_paper_and_exact(n, m):
    kernel, gram = problem(40 * m, 24)
    pattern, sparsity = partial(n_of_m, m=m), 1 - n / m
    found = prune(kernel, gram, pattern, sparsity, every=m)
    assert (np.count_nonzero(np.reshape(found.kernel, (-1, m, 24)), 1) == n).all()
    expected = paper(kernel, gram, by_output(sparsity), m)
    same = ((expected != 0) == np.asarray(found.mask)).all(0)
    assert same.mean() > 0.9
    np.testing.assert_allclose(found.kernel[:, same], expected[:, same], rtol=1e-3, atol=1e-3)
    assert output_error(kernel, found.kernel, gram) < output_error(
        kernel, by_magnitude(kernel, pattern, sparsity), gram
    )


@pytest.mark.parametrize(
    ("pattern", "keep"),
    [(per_row, by_output(0.5)), (partial(per_block, block=(8, 4)), by_block(0.5, 8, 4))],
)
def test_other_patterns_are_the_paper_and_hold_in_every_group(pattern, keep):
    kernel, gram = problem(96, 16)
    # Of few large weights, so that blocks differ in more than their mean size.
    kernel = kernel**3
    found = prune(kernel, gram, pattern, 0.5, every=32)
    np.testing.assert_array_equal(np.asarray(found.kernel) != 0, found.mask)
    np.testing.assert_array_equal(np.reshape(found.mask, (3, 32 * 16)).sum(1), 256)
    np.testing.assert_allclose(found.kernel, paper(kernel, gram, keep, 32), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "every"),
    [
        (per_tensor, 0.5, 128),
        (per_tensor, 0.9, 128),
        (per_row, 0.5, 32),
        (partial(n_of_m, m=4), 0.5, 4),
        (partial(per_block, block=(8, 4)), 0.5, 32),
    ],
)
def test_inputs_of_unlike_size_cost_less_than_by_magnitude(pattern, sparsity, every):
    kernel, gram = problem(96, 16)
    size = np.exp(np.random.default_rng(1).normal(size=96)).astype(np.float32)
    gram = size[:, None] * gram * size
    found = prune(kernel, gram, pattern, sparsity, every=every)
    plain = by_magnitude(kernel, pattern, sparsity)
    assert output_error(kernel, found.kernel, gram) < output_error(kernel, plain, gram)


def test_stacked_matrices_are_pruned_as_each_alone_and_the_defaults_are_the_papers():
    kernel, gram = problem(150, 10, (2, 3))
    sparsity = jnp.array([[0.2, 0.5, 0.7], [0.3, 0.6, 0.9]])
    together = prune(kernel, gram, per_tensor, sparsity)
    for place in np.ndindex(2, 3):
        alone = prune(kernel[place], gram, per_tensor, sparsity[place], every=128, dampening=0.01)
        np.testing.assert_array_equal(together.mask[place], alone.mask)
        np.testing.assert_allclose(together.kernel[place], alone.kernel, rtol=1e-4, atol=1e-5)
    assert together.dampening.shape == (2, 3)


def test_one_program_serves_every_sparsity():
    kernel, gram = problem(64, 10)
    traced = []

    @jax.jit
    def traced_prune(kernel, gram, sparsity):
        traced.append(sparsity)
        return sparsegpt(kernel, gram, per_tensor, sparsity, every=32)

    for sparsity in (0.25, 0.75):
        static = sparsegpt(kernel, gram, per_tensor, sparsity, every=32)
        found = traced_prune(kernel, gram, sparsity)
        np.testing.assert_array_equal(found.mask, static.mask)
        np.testing.assert_allclose(found.kernel, static.kernel, rtol=1e-4, atol=1e-5)
    assert len(traced) == 1


def test_dead_inputs_go_first_and_move_nothing():
    kernel, gram = problem(64, 12)
    dead = [5, 6, 40]
    gram[dead] = gram[:, dead] = 0
    found = prune(kernel, gram, per_tensor, 0.25, every=32)
    assert not np.asarray(found.kernel)[dead].any()
    assert not np.asarray(found.mask)[dead].any()
    np.testing.assert_allclose(
        found.kernel, paper(kernel, gram, all_together(0.25), 32), rtol=1e-3, atol=1e-3
    )


def test_the_unit_of_the_gram_does_not_matter():
    kernel, gram = problem(64, 12)
    gram[7] = gram[:, 7] = 0
    one, other = (prune(kernel, unit * gram, per_tensor, 0.5, every=32) for unit in (1, 2.0**-12))
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.kernel, other.kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dampening", [0.0, 0.01])
def test_fewer_tokens_than_inputs_give_finite_weights_and_the_dampening(dampening):
    kernel, gram = problem(64, 12, tokens=5)
    found = prune(kernel, gram, per_tensor, 0.5, dampening=dampening)
    assert np.isfinite(found.kernel).all()
    assert (found.dampening == np.float32(dampening)) if dampening else (0 < found.dampening < 0.01)


def test_a_broken_gram_is_told():
    kernel, gram = problem(64, 12)
    gram[0, 0] = np.nan
    assert not np.isfinite(prune(kernel, gram, per_tensor, 0.5).dampening)


def test_the_kernel_keeps_its_type():
    kernel, gram = problem(64, 12)
    found = prune(jnp.asarray(kernel, jnp.bfloat16), gram, per_tensor, 0.5)
    assert found.kernel.dtype == jnp.bfloat16


@pytest.mark.parametrize(("pattern", "every"), [(per_tensor, 128), (partial(n_of_m, m=4), 4)])
def test_eight_devices_prune_as_one(pattern, every):
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    kernel, gram = problem(256, 16, (3,))
    alone = prune(kernel, gram, pattern, 0.5, every=every)
    split = prune(
        jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, None, "tensor"))),
        jax.device_put(gram, NamedSharding(mesh, PartitionSpec(("fsdp", "tensor")))),
        pattern,
        0.5,
        every=every,
    )
    assert np.mean(np.asarray(split.mask) != np.asarray(alone.mask)) < 1e-3
    for k, a, b in zip(kernel, alone.kernel, split.kernel, strict=True):
        assert output_error(k, b, gram) == pytest.approx(output_error(k, a, gram), rel=1e-3)
