"""Methods on the matrices of one block."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import OneShot
from ragjax.sparsity.calibrated import methods
from ragjax.sparsity.calibrated.methods import METHODS, How, Matrices, output_error, prune_block
from ragjax.sparsity.calibrated.statistics import InputStatistics
from ragjax.sparsity.patterns import PATTERNS
from ragjax.sparsity.scores import SCORES, Evidence

GROUP = ("mlp/gate/kernel", "mlp/up/kernel")
OTHER = ("mlp/down/kernel",)
HOW = {
    "tensor": How("tensor"),
    "row": How("row"),
    "n_of_m": How("n_of_m", m=4),
    "block": How("block", block=(4, 8)),
}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens_of(size, seed, dead=()):
    # Inputs that mostly go together, as those of language models do, so that there is something to repair.
    tokens = draw(200, 4, seed=seed) @ draw(4, size, seed=seed + 1) + 0.3 * draw(200, size, seed=seed + 2)
    tokens[:, list(dead)] = 0
    return tokens


def matrices(sparsity=0.5, dead=()):
    x, y = tokens_of(16, 0, dead), tokens_of(32, 2)
    kernels = {GROUP[0]: draw(16, 32, seed=4), GROUP[1]: draw(16, 32, seed=5), OTHER[0]: draw(32, 16, seed=6)}
    statistics = {
        group: InputStatistics(jnp.asarray((x**2).sum(0)), jnp.asarray(x.T @ x))
        for group, x in ((GROUP, x), (OTHER, y))
    }
    given = {name: jnp.float32(sparsity) for name in kernels}
    return Matrices(kernels, statistics, given, jax.random.key(0)), {GROUP: x, OTHER: y}


def test_every_method_and_pattern_in_the_schema_is_there():
    hints = typing.get_type_hints(OneShot)
    assert set(typing.get_args(hints["method"])) == set(METHODS)
    assert {method.pattern for method in METHODS.values()} <= set(PATTERNS)
    assert {method.score for method in METHODS.values()} <= set(SCORES)


def test_wanda_and_ria_rank_within_a_row_as_their_papers_do_and_the_others_within_a_tensor():
    assert {name for name, method in METHODS.items() if method.pattern == "row"} == {"wanda", "ria"}
    assert {method.pattern for method in METHODS.values()} == {"row", "tensor"}


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.needs_gram])
@pytest.mark.parametrize("pattern", HOW)
def test_the_lowest_scores_go_and_the_other_weights_are_left(method, pattern):
    given, tokens = matrices()
    kernels, figures = prune_block(given, method=method, how=HOW[pattern])
    norms = {name: np.linalg.norm(tokens[group], axis=0) for group in tokens for name in group}
    scores = SCORES[method].rank(Evidence(given.kernels, given.key, input_norms=norms))
    masks = PATTERNS[pattern](HOW[pattern])(scores, 0.5, 1.0)
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(kernel, np.where(masks[name], given.kernels[name], 0))
        assert figures[name].sparsity == 0.5
        assert figures[name].dead_inputs == 0


def test_each_matrix_has_its_own_sparsity():
    given, _ = matrices()
    shares = dict(zip(given.kernels, (0.25, 0.5, 0.75), strict=True))
    given = given._replace(sparsity={name: jnp.float32(share) for name, share in shares.items()})
    kernels, _ = prune_block(given, method="magnitude", how=How())
    assert {name: float((kernel == 0).mean()) for name, kernel in kernels.items()} == shares


def test_the_output_error_is_that_of_the_outputs():
    given, tokens = matrices(dead=(3, 7))
    kernels, figures = prune_block(given, method="wanda", how=How("row"))
    for group, x in tokens.items():
        for name in group:
            w, sparse = np.asarray(given.kernels[name], np.float64), np.asarray(kernels[name], np.float64)
            expected = np.linalg.norm(x @ (w - sparse)) / np.linalg.norm(x @ w)
            assert float(figures[name].error) == pytest.approx(expected, rel=1e-4)
            assert figures[name].dead_inputs == (2 if group == GROUP else 0)


def test_there_is_no_output_error_without_a_gram_and_none_at_all_of_nothing():
    assert output_error(draw(4, 4), draw(4, 4), None) is None
    assert output_error(jnp.zeros((4, 4)), jnp.zeros((4, 4)), jnp.eye(4)) == 0


@pytest.mark.parametrize(
    ("how", "every"),
    [(How("tensor"), 128), (How("row"), 128), (How("n_of_m", m=8), 8), (How("block", block=(8, 128)), 128),
     (How("block", block=(48, 4)), 96), (How("block", block=(256, 4)), 256)],
)  # fmt: skip
def test_a_sweep_chooses_where_groups_and_blocks_end(how, every):
    assert how.every == every


REPAIRING = [name for name, method in METHODS.items() if method.needs_gram]


@pytest.mark.parametrize("method", REPAIRING)
def test_repair_costs_less_output_error_than_magnitude_and_wanda(method):
    given, _ = matrices()
    errors = {
        name: {n: float(f.error) for n, f in prune_block(given, method=name, how=How())[1].items()}
        for name in (method, "magnitude", "wanda")
    }
    for name, error in errors[method].items():
        assert error < 0.95 * min(errors["magnitude"][name], errors["wanda"][name])


@pytest.mark.parametrize("method", REPAIRING)
def test_matrices_that_read_the_same_come_out_as_they_would_alone(method):
    given, _ = matrices()
    given = given._replace(sparsity=dict(zip(given.kernels, map(jnp.float32, (0.25, 0.5, 0.5)), strict=True)))
    together, figures = prune_block(given, method=method, how=How())
    for name in GROUP:
        alone = Matrices(
            {name: given.kernels[name]}, {(name,): given.statistics[GROUP]},
            {name: given.sparsity[name]}, given.key,
        )  # fmt: skip
        kernels, _ = prune_block(alone, method=method, how=How())
        np.testing.assert_array_equal(kernels[name] == 0, together[name] == 0)
        np.testing.assert_allclose(kernels[name], together[name], atol=5e-3)
        assert figures[name].sparsity == pytest.approx(float(given.sparsity[name]))
        assert figures[name].dampening == pytest.approx(0.01)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_where_donated_what_is_done_with_is_taken_out_before_a_program_is_called(method, monkeypatch):
    given, _ = matrices()
    # As programs hand them over: sorted by name.
    given = given._replace(statistics=dict(sorted(given.statistics.items())))
    expected, _ = prune_block(given, method=method, how=How())
    assert len(given.kernels) == 3
    seen, program = [], methods.prune_matrices

    def watched(part, **options):
        assert {name for group in given.statistics for name in group} == given.kernels.keys()
        seen.append(list(given.statistics))
        return program(part, **options)

    monkeypatch.setattr(methods, "prune_matrices", watched)
    found, _ = prune_block(given, method=method, how=How(), donate=True)
    assert seen == [[GROUP], []]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_where_no_gram_can_be_used_wanda_chooses_and_nothing_is_changed():
    given, _ = matrices()
    broken = {group: known._replace(gram=known.gram * jnp.nan) for group, known in given.statistics.items()}
    kernels, figures = prune_block(given._replace(statistics=broken), method="sparsegpt", how=How())
    expected, _ = prune_block(given, method="wanda", how=How())
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(kernel, expected[name])
        assert not np.isfinite(figures[name].dampening)
