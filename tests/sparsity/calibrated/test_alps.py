"""ALPS: better than SparseGPT, and at its best within its mask."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.sparsity.calibrated.alps import alps
from ragjax.sparsity.calibrated.sparsegpt import sparsegpt
from ragjax.sparsity.patterns import n_of_m, per_block, per_row, per_tensor

TWO_OF_FOUR = partial(n_of_m, m=4)


def problem(inputs=48, outputs=24, matrices=(), tokens=None, seed=0):
    """Inputs that depend on one another, and of unlike size."""
    rng = np.random.default_rng(seed)
    mix = (np.eye(inputs) + rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)) * np.exp(
        rng.normal(size=inputs)
    )
    x = (rng.normal(size=(tokens or 4 * inputs, inputs)) @ mix).astype(np.float32)
    return rng.normal(size=(*matrices, inputs, outputs)).astype(np.float32), x.T @ x


def output_error(kernel, pruned, gram):
    change = np.float64(kernel) - np.float64(pruned)
    return np.sum(change * (gram.astype(np.float64) @ change))


@pytest.mark.parametrize(
    ("pattern", "sparsity", "every"),
    [(per_tensor, 0.5, 128), (per_tensor, 0.7, 128), (per_tensor, 0.9, 128), (TWO_OF_FOUR, 0.5, 4)],
)
def test_it_is_never_worse_than_sparsegpt(pattern, sparsity, every):
    ours = jax.jit(lambda k, g: alps(k, g, pattern, sparsity))
    theirs = jax.jit(lambda k, g: sparsegpt(k, g, pattern, sparsity, every=every))
    for seed in range(5):
        kernel, gram = problem(seed=seed)
        found, other = (f(kernel, gram) for f in (ours, theirs))
        np.testing.assert_array_equal(np.asarray(found.kernel) != 0, found.mask)
        assert np.count_nonzero(found.mask) == round(kernel.size * (1 - sparsity))
        assert output_error(kernel, found.kernel, gram) < output_error(kernel, other.kernel, gram)


def least_squares(kernel, gram, mask, dampening=0.01):
    """The best weights at a mask, by a factor of the damped gram and numpy's lstsq."""
    root = np.linalg.cholesky(gram + dampening * np.diagonal(gram).mean() * np.eye(len(gram))).T
    best = np.zeros(kernel.shape)
    for output in range(kernel.shape[1]):
        stays = np.asarray(mask)[:, output]
        best[stays, output] = np.linalg.lstsq(root[:, stays], root @ kernel[:, output])[0]
    return best


@pytest.mark.parametrize(("pattern", "sparsity"), [(per_tensor, 0.6), (TWO_OF_FOUR, 0.5), (per_row, 0.8)])
def test_the_weights_that_stay_solve_their_least_squares(pattern, sparsity):
    kernel, gram = problem(seed=3)
    found = alps(kernel, gram, pattern, sparsity, refinements=60)
    best = least_squares(np.float64(kernel), np.float64(gram), found.mask)
    np.testing.assert_allclose(found.kernel, best, rtol=1e-3, atol=1e-3)


def test_refinements_only_ever_help():
    kernel, gram = problem(seed=4)
    errors = [
        output_error(kernel, alps(kernel, gram, per_tensor, 0.8, refinements=steps).kernel, gram)
        for steps in (0, 3, 10, 40)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_the_mask_is_better_than_the_one_of_magnitude_at_its_best():
    kernel, gram = problem(seed=5)
    found = alps(kernel, gram, per_tensor, 0.7)
    best = least_squares(np.float64(kernel), np.float64(gram), per_tensor(jnp.abs(kernel), 0.7))
    assert output_error(kernel, found.kernel, gram) < 0.7 * output_error(kernel, best, gram)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 5)])
def test_n_of_m_is_exact(n, m):
    kernel, gram = problem(8 * m)
    found = alps(kernel, gram, partial(n_of_m, m=m), 1 - n / m)
    assert (np.count_nonzero(np.reshape(found.kernel, (-1, m, 24)), 1) == n).all()


def test_blocks_go_whole():
    kernel, gram = problem()
    blocks = np.reshape(alps(kernel, gram, partial(per_block, block=(8, 4)), 0.5).mask, (6, 8, 6, 4))
    assert (blocks.any((1, 3)) == blocks.all((1, 3))).all()
    assert blocks.mean() == 0.5


def test_stacked_matrices_are_pruned_as_each_alone_by_one_program():
    kernel, gram = problem(matrices=(3,))
    sparsity = jnp.array([0.3, 0.5, 0.9])
    prune = jax.jit(lambda k, s: alps(k, gram, per_tensor, s))
    together = prune(kernel, sparsity)
    assert together.dampening.shape == (3,)
    for i in range(3):
        alone = prune(kernel[i], sparsity[i])
        assert np.mean(np.asarray(together.mask[i]) != np.asarray(alone.mask)) < 0.005
        assert output_error(kernel[i], together.kernel[i], gram) == pytest.approx(
            output_error(kernel[i], alone.kernel, gram), rel=0.01
        )
        static = alps(kernel[i], gram, per_tensor, float(sparsity[i]))
        assert np.mean(np.asarray(static.mask) != np.asarray(alone.mask)) < 0.005
    assert prune._cache_size() == 2


def test_dead_inputs_get_no_weight():
    kernel, gram = problem()
    gram[[5, 40]] = gram[:, [5, 40]] = 0
    found = alps(kernel, gram, per_tensor, 0.5)
    assert not np.asarray(found.kernel)[[5, 40]].any()
    assert np.isfinite(found.kernel).all()


@pytest.mark.parametrize("dampening", [0.0, 0.01])
def test_fewer_tokens_than_inputs_give_finite_weights(dampening):
    kernel, gram = problem(tokens=5)
    found = alps(kernel, gram, per_tensor, 0.5, dampening=dampening)
    assert np.isfinite(found.kernel).all()
    assert found.dampening == np.float32(dampening)


def test_nothing_to_prune_leaves_the_kernel():
    kernel, gram = problem()
    np.testing.assert_allclose(alps(kernel, gram, per_tensor, 0.0).kernel, kernel, rtol=1e-3, atol=1e-3)


def test_a_broken_gram_is_told():
    kernel, gram = problem()
    gram[1, 2] = gram[2, 1] = np.inf
    assert not np.isfinite(alps(kernel, gram, per_tensor, 0.5).dampening)


def test_eight_devices_prune_as_one():
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel, gram = problem(matrices=(2,))
    prune = jax.jit(lambda k, g: alps(k, g, per_tensor, 0.7))
    alone = prune(kernel, gram)
    split = prune(
        jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, None, "tensor"))),
        jax.device_put(gram, NamedSharding(mesh, PartitionSpec("tensor"))),
    )
    assert np.mean(np.asarray(split.mask) != np.asarray(alone.mask)) < 0.01
    for k, a, b in zip(kernel, alone.kernel, split.kernel, strict=True):
        assert output_error(k, b, gram) == pytest.approx(output_error(k, a, gram), rel=0.02)
