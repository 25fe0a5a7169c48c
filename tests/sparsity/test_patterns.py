"""Patterns: exact counts, against torch and brute force, and on a mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ragjax.config import Sparsity
from ragjax.errors import InputError
from ragjax.sparsity.patterns import (
    PATTERNS,
    n_of_m,
    over_model,
    per_block,
    per_row,
    per_tensor,
    removed,
)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def zeros(mask, axis=None):
    return np.sum(~np.asarray(mask), axis=axis)


@pytest.mark.parametrize("target", [0.0, 0.1, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize("shape", [(3, 7, 5), (32, 48)])
def test_counts_are_exact(shape, target):
    distinct = {"a": draw(*shape), "b": draw(*shape, seed=1)}
    *_, rows, columns = shape
    patterns = [jax.jit(lambda s, p=p: p(s, target)) for p in (per_tensor, per_row, over_model)]
    for scores in (distinct, jax.tree.map(jnp.ones_like, distinct)):
        tensor, row, everything = (pattern(scores) for pattern in patterns)
        for name in scores:
            assert (zeros(tensor[name], (-2, -1)) == round(rows * columns * target)).all()
            assert (zeros(row[name], -2) == round(rows * target)).all()
        assert sum(map(zeros, everything.values())) == round(2 * np.prod(shape) * target)


@pytest.mark.parametrize("size", [10, 768 * 3072, 84_934_656, 2**32 - 1])
@pytest.mark.parametrize("target", [0.1, 0.9, 0.7])
def test_removed_is_exact_beyond_the_precision_of_float32(size, target):
    assert int(jax.jit(lambda share: removed(size, target, share))(1.0)) == round(size * target)


def test_removed_never_overtakes_the_target_and_never_falls():
    shares = np.linspace(0, 1, 1001, dtype=np.float32)
    for size in (4, 1000, 2**32 - 1):
        counts = np.asarray(jax.vmap(lambda share, size=size: removed(size, 0.9, share))(shares), np.int64)
        assert counts[0] == 0
        assert (np.diff(counts) >= 0).all()
        assert counts[-1] == counts.max() == round(size * 0.9)


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.83])
def test_per_tensor_equals_torch_l1_unstructured(amount):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    weights = np.asarray(draw(24, 10))
    layer = torch.nn.Linear(24, 10)
    layer.weight.data = torch.tensor(weights.T.copy())
    prune.l1_unstructured(layer, "weight", amount)
    mask = per_tensor({"w": jnp.abs(weights)}, amount)["w"]
    np.testing.assert_array_equal(mask, layer.weight_mask.numpy().T == 1)


def test_two_of_four_equals_torch_weight_norm_sparsifier():
    torch = pytest.importorskip("torch")
    from torch.ao.pruning import WeightNormSparsifier

    weights = np.asarray(draw(16, 6))
    layer = torch.nn.Sequential(torch.nn.Linear(16, 6))
    layer[0].weight.data = torch.tensor(weights.T.copy())
    sparsifier = WeightNormSparsifier(1.0, (1, 4), 2)
    sparsifier.prepare(layer, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    mask = n_of_m({"w": jnp.abs(weights)}, 0.5, m=4)["w"]
    np.testing.assert_array_equal(mask, layer[0].parametrizations.weight[0].mask.numpy().T == 1)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3), (1, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_n_of_m_keeps_the_best_subset_of_each_group(n, m, ties):
    scores = draw(2, 3 * m, 5)
    scores = jnp.round(scores) if ties else scores
    mask = np.asarray(jax.jit(lambda s: n_of_m({"w": s}, 1 - n / m, m=m))(scores)["w"])
    scores = np.asarray(scores)
    for layer, group, column in itertools.product(range(2), range(3), range(5)):
        at = (layer, slice(group * m, group * m + m), column)
        # Of subsets with the same scores, the one whose members stand last.
        best = max(
            itertools.combinations(range(m), n), key=lambda s, g=scores[at]: (sorted(g[list(s)]), sum(s))
        )
        assert tuple(np.flatnonzero(mask[at])) == best


def test_n_of_m_refuses_inputs_that_do_not_divide_and_names_them_all():
    with pytest.raises(InputError, match=r"m = 4") as error:
        n_of_m({"up": {"kernel": draw(2, 6, 4)}, "down": {"kernel": draw(7, 4)}, "ok": draw(8, 3)}, 0.5, m=4)
    assert "up/kernel: 6 inputs" in str(error.value)
    assert "down/kernel: 7 inputs" in str(error.value)
    assert "ok" not in str(error.value)


def test_global_finds_the_layer_with_the_small_weights():
    masks = over_model({"small": draw(8, 8) * 1e-3 + 1, "large": draw(8, 8) * 1e-3 + 2}, 0.5)
    assert zeros(masks["small"]) == 64
    assert zeros(masks["large"]) == 0


def test_a_pattern_touches_only_what_is_there():
    masks = per_tensor({"a": draw(4, 4), "b": None}, 0.5)
    assert masks["b"] is None


@pytest.mark.parametrize("block", [(2, 4), (3, 5), (8, 128)])
@pytest.mark.parametrize("target", [0.0, 0.3, 0.5])
def test_per_block_removes_the_blocks_of_the_lowest_mean(block, target):
    scores = np.abs(np.asarray(draw(2, 11, 14)))
    mask = np.asarray(jax.jit(lambda s: per_block({"w": s}, target, block=block)["w"])(scores))
    high, wide = block
    for layer in range(2):
        corners = list(itertools.product(range(0, 11, high), range(0, 14, wide)))
        means = [scores[layer, i : i + high, j : j + wide].astype(np.float64).mean() for i, j in corners]
        gone = set(np.argsort(means)[: round(len(corners) * target)].tolist())
        for number, (i, j) in enumerate(corners):
            assert (mask[layer, i : i + high, j : j + wide] == (number not in gone)).all()


TARGETS = np.array([0.0, 0.25, 0.75])


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("pattern", "grouped", "size"), [(per_tensor, (-2, -1), 96), (per_row, -2, 8), (per_block, (-2, -1), 96)]
)
def test_each_layer_and_each_parameter_may_have_a_target_of_its_own(pattern, grouped, size, traced):
    blocks = pattern is per_block
    pattern = (lambda s, t: per_block(s, t, block=(2, 3))) if blocks else pattern
    scores = {"a": draw(3, 8, 12), "b": draw(3, 8, 12, seed=1), "c": None}
    targets = {"a": TARGETS, "b": TARGETS[::-1].copy(), "c": None}
    masks = jax.jit(pattern)(scores, targets) if traced else pattern(scores, targets)
    for name in ("a", "b"):
        counts = np.broadcast_to(
            np.rint(size * targets[name]).reshape(3, *(1,) * (grouped == -2)),
            zeros(masks[name], grouped).shape,
        )
        np.testing.assert_array_equal(zeros(masks[name], grouped), counts)
    shared = pattern(scores, TARGETS)
    np.testing.assert_array_equal(shared["a"], masks["a"])
    assert (zeros(shared["b"], (-2, -1)) == np.rint(96 * TARGETS)).all()


def test_n_of_m_takes_a_target_for_each_layer():
    mask = n_of_m({"w": draw(3, 8, 4)}, TARGETS, m=4)["w"]
    assert (zeros(np.asarray(mask).reshape(3, 2, 4, 4), -2) == (4 * TARGETS)[:, None, None]).all()


CONFIGS = {
    "tensor": Sparsity(target=0.7, pattern="tensor"),
    "row": Sparsity(target=0.7, pattern="row"),
    "global": Sparsity(target=0.7, pattern="global"),
    "n_of_m": Sparsity(target=0.5, pattern="n_of_m"),
    "block": Sparsity(target=0.5, pattern="block", block=(4, 8)),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("ties", [False, True])
def test_masks_on_a_mesh_are_those_of_one_device_and_no_weight_is_gathered(name, ties):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    layout = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    scores = {"up": draw(3, 16, 32), "down": draw(3, 32, 16, seed=1)}
    scores = jax.tree.map(lambda s: jnp.round(s * 2), scores) if ties else scores
    config = CONFIGS[name]
    run = jax.jit(lambda scores, share: PATTERNS[name](config)(scores, config.target, share))
    alone = run(scores, 0.8)
    spread = jax.device_put(scores, layout)
    compiled = run.lower(spread, 0.8).compile()
    together = compiled(spread, 0.8)
    for key, mask in together.items():
        np.testing.assert_array_equal(mask, alone[key])
        assert mask.sharding.is_equivalent_to(layout, 3)
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
