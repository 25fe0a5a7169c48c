"""GPTQ against the paper's statement in float64, column by column."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.quantization.gptq import gptq
from ragjax.quantization.grid import from_codes, rounded, to_codes
from ragjax.quantization.scheme import Scheme

sweep = jax.jit(gptq, static_argnames=("scheme", "order"))
SCHEMES = {
    "int4": Scheme(bits=4, group=32, symmetric=True, activations=None),
    "int4 with zeros": Scheme(bits=4, group=32, symmetric=False, activations=None),
    "int4 of whole outputs": Scheme(bits=4, group=0, symmetric=True, activations=None),
    "int8": Scheme(bits=8, group=32, symmetric=True, activations=None),
}


def problem(inputs=96, outputs=16, dead=(), seed=0):
    """A kernel, and X'X of inputs of unlike sizes that go together."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * inputs, inputs)) @ (np.eye(inputs) + 0.3 * rng.normal(size=(inputs, inputs)))
    x = (x * np.exp(0.5 * rng.normal(size=inputs))).astype(np.float32)
    x[:, list(dead)] = 0
    return rng.normal(size=(inputs, outputs)).astype(np.float32), x.T @ x


def points(w, values, scheme):
    """`values` on the grid of each row of `w`, as `ragjax.quantization.grid` tells of it."""
    lowest, highest = (-127, 127) if scheme.bits == 8 else (-8, 7)
    least, most = w.min(1, keepdims=True), w.max(1, keepdims=True)
    zero = 0
    if scheme.symmetric:
        extreme = np.where(most >= -least, most, least)
        step = np.abs(extreme) / 127 if scheme.bits == 8 else extreme / -8
    else:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
        step = (most - least) / (highest - lowest)
    step = step.astype(np.float16).astype(np.float64)
    if not scheme.symmetric:
        zero = np.clip(np.rint(lowest - least / step), lowest, highest)
    return (np.clip(np.rint(values / step) + zero, lowest, highest) - zero) * step


def paper(kernel, gram, scheme, order=False):
    """Column by column, every later one updated at once; grids in `order` are of weights as they were."""
    w, h = kernel.astype(np.float64).T, gram.astype(np.float64)
    size, kept, first = w.shape[1], (kernel != 0).T, w.copy()
    dead = np.diagonal(h) == 0
    h[dead, dead] = np.diagonal(h)[~dead].mean()
    h += 0.01 * np.diagonal(h)[~dead].mean() * np.eye(size)
    visited = np.argsort(-np.diagonal(gram), kind="stable") if order else np.arange(size)
    upper = np.linalg.cholesky(np.linalg.inv(h[visited][:, visited])).T
    group = scheme.group or size
    for at, j in enumerate(visited):
        begin = j // group * group
        if order:
            grid_of = first[:, begin : begin + group]
        elif j == begin:
            grid_of = (w * kept)[:, begin : begin + group].copy()
        q = np.where(kept[:, j], points(grid_of, w[:, j : j + 1], scheme)[:, 0], 0)
        error = (w[:, j] - q) / upper[at, at]
        w[:, visited[at + 1 :]] -= np.outer(error, upper[at, at + 1 :])
        w[:, j] = q
    return w.T


def losses(kernel, changed, gram):
    """||X D||^2 of each output."""
    change = np.float64(kernel) - np.float64(changed)
    return np.sum(change * (gram.astype(np.float64) @ change), 0)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("int4", False), ("int4", True), ("int4 with zeros", False), ("int4 of whole outputs", True),
        ("int8", False),
    ],
)  # fmt: skip
def test_it_is_the_paper_and_no_output_is_worse_off_than_rounded(name, order):
    scheme = SCHEMES[name]
    kernel, gram = problem()
    found = sweep(kernel, gram, scheme, order=order)
    expected = paper(kernel, gram, scheme, order)
    # A weight halfway between two points may fall to either in float32, and moves what follows.
    assert np.mean(np.abs(found.kernel - expected) > 1e-3) < 0.03
    assert losses(kernel, found.kernel, gram).sum() == pytest.approx(
        losses(kernel, expected, gram).sum(), rel=0.02
    )
    nearest = losses(kernel, rounded(kernel, scheme), gram)
    assert (losses(kernel, found.kernel, gram) <= nearest * (1 + 1e-5)).all()
    assert losses(kernel, found.kernel, gram).sum() < 0.8 * nearest.sum()
    codes = to_codes(found.kernel, found.grid, scheme)
    np.testing.assert_allclose(from_codes(codes, found.grid, scheme), found.kernel, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["int4", "int4 with zeros", "int4 of whole outputs"])
def test_a_sparse_kernel_stays_sparse_and_what_was_to_be_added_is_made_up_for(name):
    scheme = SCHEMES[name]
    kernel, gram = problem()
    kernel *= np.random.default_rng(1).random(kernel.shape) < 0.5
    found = np.asarray(sweep(kernel, gram, scheme).kernel)
    assert not found[kernel == 0].any()
    expected = paper(kernel, gram, scheme)
    # In float32 a weight may fall to the other side of a step, and moves what follows of its output.
    assert (np.abs(found - expected) < 1e-3).all(0).sum() > 10
    assert losses(kernel, found, gram).sum() == pytest.approx(losses(kernel, expected, gram).sum(), rel=0.02)


def test_a_grid_is_of_the_weights_that_stay_not_of_what_others_add_where_none_is():
    kernel, gram = problem()
    kernel[32:64] = 0
    made = sweep(kernel, gram, SCHEMES["int4"])
    assert (np.asarray(made.grid.scale)[[0, 2]] != 0).all()
    assert not np.asarray(made.grid.scale)[1].any()


def test_where_the_sweep_errs_more_an_output_is_rounded_to_the_nearest():
    kernel, gram = problem(inputs=32, outputs=40)
    scheme = replace(SCHEMES["int4"], group=4)
    # With a ridge this large nothing is made up for, and grids of moved weights are no better than others.
    found = sweep(kernel, gram, scheme, dampening=30.0)
    nearest = np.asarray(rounded(kernel, scheme))
    same = (np.asarray(found.kernel) == nearest).all(0)
    assert 0 < same.sum() < 40
    assert (losses(kernel, found.kernel, gram) <= losses(kernel, nearest, gram) * (1 + 1e-5)).all()


def test_inputs_that_were_never_seen_are_rounded_and_move_nothing():
    dead = (5, 6, 40)
    kernel, gram = problem(dead=dead)
    scheme = replace(SCHEMES["int4"], group=0)
    found, nearest = (np.asarray(x) for x in (sweep(kernel, gram, scheme).kernel, rounded(kernel, scheme)))
    np.testing.assert_array_equal(found[list(dead)], nearest[list(dead)])
    alive = np.setdiff1d(np.arange(96), dead)
    np.testing.assert_allclose(found[alive], paper(kernel, gram, scheme)[alive], rtol=1e-3, atol=1e-3)


def test_with_a_broken_gram_all_is_rounded_to_the_nearest_and_it_is_told():
    kernel, gram = problem()
    gram[0, 0] = np.nan
    found = sweep(kernel, gram, SCHEMES["int4"])
    np.testing.assert_array_equal(found.kernel, rounded(kernel, SCHEMES["int4"]))
    assert not np.isfinite(found.dampening)


def test_eight_devices_round_as_one():
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    kernel, gram = problem()
    alone = sweep(kernel, gram, SCHEMES["int4"])
    split = sweep(
        jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, "tensor"))),
        jax.device_put(gram, NamedSharding(mesh, PartitionSpec(("fsdp", "tensor")))),
        SCHEMES["int4"],
    )
    assert jnp.mean(jnp.abs(split.kernel - alone.kernel) > 1e-4) < 0.01
    assert losses(kernel, split.kernel, gram).sum() == pytest.approx(
        losses(kernel, alone.kernel, gram).sum(), rel=1e-2
    )
