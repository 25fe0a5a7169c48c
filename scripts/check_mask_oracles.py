"""Compares ragjax's masks with those of the programs whose rules they follow, weight by weight.

    pip install torch nvidia-modelopt llmcompressor
    python scripts/check_mask_oracles.py

Takes a minute or two. A program that is not installed, or cannot be imported, is skipped, with the reason.

Random matrices are pruned by both, some with many equal weights. `differ` counts the weights that one mask
keeps and the other does not; `unexplained` leaves out those whose scores are alike to 1e-6, of which any may
go. SparseGPT has no scores to look up afterwards: one weight in 1,000 may differ, for where rounding
exchanges two of them, those after them move. `values` is the largest difference of a weight that stays, where
the oracle tells it.

Ends with 1 where a difference is unexplained, a value differs by more than 0.001, or nothing was compared.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ragjax.sparsity.calibrated.gram import gram
from ragjax.sparsity.calibrated.methods import METHODS, How, Matrices
from ragjax.sparsity.calibrated.statistics import InputStatistics

SHAPES = ((80, 48), (320, 64), (640, 256))
"""Inputs and outputs. Of these inputs 50 % and 60 % are whole numbers."""
ALIKE = 1e-6
"""Relative difference of scores of which either may go."""
MOVED = 1e-3
"""Share of SparseGPT's weights that may differ, and how far values may."""
SWEEP = 128
"""Inputs for which SparseGPT chooses a mask at once."""


class Problem(NamedTuple):
    """What is pruned."""

    kernel: np.ndarray
    """[in, out]"""
    tokens: np.ndarray
    """[tokens, in]: what the kernel is multiplied with."""


class Pruned(NamedTuple):
    """What is left of it."""

    mask: np.ndarray
    """[in, out]; True at the weights that stay."""
    kernel: np.ndarray | None = None
    """[in, out]; none where weights that stay are left as they are."""


class Rule(NamedTuple):
    """What ragjax is asked for."""

    method: str
    pattern: str
    sparsity: float
    m: int = 4

    def __str__(self) -> str:
        share = f"{self.sparsity:.0%}"
        where = f"{round(self.m * (1 - self.sparsity))}:{self.m}" if self.pattern == "n_of_m" else share
        return f"{self.method} {where}"


class Check(NamedTuple):
    """One line of the table."""

    package: str
    function: str
    """module.function"""
    rule: Rule
    theirs: Callable[[Any, Problem], Pruned]
    """Prunes a problem by the function."""
    problems: Callable[[], list[Problem]]
    remark: str = ""
    fewer: int = 0
    """How many weights fewer than ragjax the function takes from each group that is ranked together."""


class Difference(NamedTuple):
    """Of one problem: what the table sums up."""

    weights: int
    differ: int
    unexplained: int
    values: float | None = None


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")
    counts = f"{'weights':>8} {'differ':>7} {'unexplained':>12} {'values':>7}"
    print(f"{'oracle':32} {'version':11} {'case':45} {counts}")
    told: dict[str, list[bool | None]] = {}
    for check in CHECKS:
        if None not in told.setdefault(check.package, []):
            told[check.package].append(run(check))
    good = [one for each in told.values() for one in each if one is not None]
    if not good:
        print("nothing was compared: install a package that is named at the top of this file")
    raise SystemExit(0 if good and all(good) else 1)


def run(check: Check) -> bool | None:
    """Prints one line; whether ragjax and the oracle agree, or none where there is no such package."""
    module, _, name = check.function.rpartition(".")
    who, case = f"{check.package} {name}", f"{check.rule}{check.remark and ', '}{check.remark}"
    try:
        version = importlib.metadata.version(check.package)
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # A package may break in any way while it is imported.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{check.package:32} skipped: {reason}", flush=True)
        return None
    found = [compare(check, partial(check.theirs, function), problem) for problem in check.problems()]
    weights, differ = sum(f.weights for f in found), sum(f.differ for f in found)
    unexplained = sum(f.unexplained for f in found)
    values = max((f.values for f in found if f.values is not None), default=None)
    counts = f"{weights:8,} {differ:7,} {unexplained:12,} {'-' if values is None else f'{values:.0e}':>7}"
    print(f"{who:32} {version:11} {case:45} {counts}", flush=True)
    return unexplained == 0 and (values is None or values < MOVED)


def compare(check: Check, prune: Callable[[Problem], Pruned], problem: Problem) -> Difference:
    ours, theirs = by_ragjax(check.rule, problem), prune(problem)
    apart = ours.mask != theirs.mask
    differ = int(apart.sum())
    if check.rule.method != "sparsegpt":
        unexplained = apart & ~alike(check, problem, ours.mask, theirs.mask)
        return Difference(apart.size, differ, int(unexplained.sum()))
    unexplained = differ if apart.mean() > MOVED else 0
    if theirs.kernel is None or ours.kernel is None:
        return Difference(apart.size, differ, unexplained)
    values = np.abs(ours.kernel - theirs.kernel)[:, ~apart.any(0)]
    return Difference(apart.size, differ, unexplained, float(values.max(initial=0.0)))


def alike(check: Check, problem: Problem, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[in, out]: True in groups where the same scores stay, but for the lowest `fewer` of theirs."""
    norms = np.linalg.norm(problem.tokens.astype(np.float64), axis=0)[:, None]
    scores = np.abs(problem.kernel) * (norms if check.rule.method == "wanda" else 1.0)
    size = {"tensor": scores.size, "row": len(scores), "n_of_m": check.rule.m}[check.rule.pattern]
    grouped = scores.T.reshape(-1, size)
    masks = [mask.T.reshape(-1, size) for mask in (ours, theirs)]
    best = [-np.sort(np.where(mask, -grouped, 0.0)) for mask in masks]
    kept, by_them = (mask.sum(1, keepdims=True) for mask in masks)
    same = np.isclose(best[0], best[1], rtol=ALIKE, atol=0) | (np.arange(size) >= kept)
    good = same.all(1, keepdims=True) & (by_them - kept == check.fewer)
    return good.repeat(size, 1).reshape(ours.T.shape).T


def by_ragjax(rule: Rule, problem: Problem) -> Pruned:
    """What `ragjax prune` makes of the matrix."""
    how = How(pattern=rule.pattern, m=rule.m)

    @jax.jit
    def prune(kernel, tokens):
        known = InputStatistics(jnp.square(tokens).sum(0), gram(tokens))
        sparsity = {"w": jnp.float32(rule.sparsity)}
        given = Matrices({"w": kernel}, {("w",): known}, sparsity, jax.random.key(0))
        return METHODS[rule.method].prune(given, how)["w"]

    made = prune(*problem)
    return Pruned(np.asarray(made.mask), np.asarray(made.kernel))


def distinct() -> list[Problem]:
    """Normal weights; inputs that depend on one another and are of unlike size."""
    return [_random(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]


def equal_weights() -> list[Problem]:
    """Weights that are small whole numbers, and inputs of one norm: of equal scores there are many."""
    return [Problem(np.rint(2 * kernel), np.ones((64, len(kernel)), np.float32)) for kernel, _ in distinct()]


def with_dead_inputs() -> list[Problem]:
    """Inputs that are 0 at every token, no three of them in a group of four."""
    problems = distinct()
    for _, tokens in problems:
        tokens[:, [2, 3, 40, len(tokens[0]) - 1]] = 0
    return problems


def _random(inputs: int, outputs: int, seed: int = 0) -> Problem:
    random = np.random.default_rng(seed)
    mix = np.eye(inputs) + random.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    tokens = random.normal(size=(4 * inputs, inputs)) @ mix * np.exp(random.normal(size=inputs))
    return Problem(random.normal(size=(inputs, outputs)).astype(np.float32), tokens.astype(np.float32))


def _linear(problem: Problem) -> Any:
    import torch

    inputs, outputs = problem.kernel.shape
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    layer.weight.data = torch.tensor(problem.kernel.T.copy())
    return layer


def _hessian(problem: Problem) -> Any:
    """X'X of mean diagonal 1: dead inputs get a 1 there, which is then the mean, as with ragjax."""
    import torch

    found = problem.tokens.T @ problem.tokens
    diagonal = np.diagonal(found)
    return torch.tensor(found / diagonal[diagonal > 0].mean())


def l1_unstructured(function: Any, problem: Problem, amount: float) -> Pruned:
    layer = _linear(problem)
    function(layer, "weight", amount)
    return Pruned(layer.weight_mask.numpy().T == 1)


def weight_norm(function: Any, problem: Problem) -> Pruned:
    import torch

    model: Any = torch.nn.Sequential(_linear(problem))
    sparsifier = function(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    return Pruned(model[0].parametrizations.weight[0].mask.numpy().T == 1)


def asp(function: Any, problem: Problem) -> Pruned:
    return Pruned(function(_linear(problem).weight.data, "2:4 sparsity").numpy().T)


def sgpt(function: Any, problem: Problem) -> Pruned:
    config = {"pattern": "2:4 sparsity", "hessian_damp": 0.01, "col_block_size": SWEEP, "row_block_size": -1}
    return Pruned(function(_linear(problem).weight.data, _hessian(problem), config).numpy().T)


def wanda(function: Any, problem: Problem, sparsity: float, n: int = 0, m: int = 0) -> Pruned:
    import torch
    from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import (
        accumulate_row_scalars,
        make_empty_row_scalars,
    )

    layer = _linear(problem)
    tokens = torch.tensor(problem.tokens)
    squares, _ = accumulate_row_scalars(tokens, layer, make_empty_row_scalars(layer), 0)
    # A weight that is 0 and stays could not be told from one that went.
    layer.weight.data[layer.weight.data == 0] = 1e-30
    return Pruned(function(layer, {layer: squares}, sparsity, n, m).numpy().T != 0)


def sparsegpt(function: Any, problem: Problem, sparsity: float, n: int = 0, m: int = 0) -> Pruned:
    layer = _linear(problem)
    if not n:
        # It removes what lies at its threshold too, and so one weight more than it was asked for.
        sparsity -= 0.5 / (SWEEP * problem.kernel.shape[1])
    _, made = function(layer, {layer: _hessian(problem)}, sparsity, n, m, SWEEP, 0.01, False)
    kernel = made.detach().numpy().T
    return Pruned(kernel != 0, kernel)


L1 = ("torch", "torch.nn.utils.prune.l1_unstructured")
WEIGHT_NORM = ("torch", "torch.ao.pruning.WeightNormSparsifier")
ASP = ("nvidia-modelopt", "modelopt.torch.sparsity.weight_sparsity.magnitude.create_asp_mask")
SGPT = ("nvidia-modelopt", "modelopt.torch.sparsity.weight_sparsity.sparsegpt.create_sgpt_mask")
WANDA = ("llmcompressor", "llmcompressor.modifiers.pruning.wanda.wanda_sparsify.sparsify_weight")
SPARSEGPT = ("llmcompressor", "llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify.sparsify_weight")

HALF = Rule("magnitude", "tensor", 0.5)
TWO_OF_FOUR = Rule("magnitude", "n_of_m", 0.5)
REPAIRED = Rule("sparsegpt", "n_of_m", 0.5)

CHECKS = [
    *(
        Check(*oracle, rule, theirs, problems, remark)
        for problems, remark in ((distinct, ""), (equal_weights, "equal weights"))
        for oracle, rule, theirs in (
            (L1, HALF, partial(l1_unstructured, amount=0.5)),
            (WEIGHT_NORM, TWO_OF_FOUR, weight_norm),
            (ASP, TWO_OF_FOUR, asp),
            (WANDA, Rule("wanda", "row", 0.5), partial(wanda, sparsity=0.5)),
            (WANDA, Rule("wanda", "row", 0.6), partial(wanda, sparsity=0.6)),
            (WANDA, Rule("wanda", "n_of_m", 0.5), partial(wanda, sparsity=0.5, n=2, m=4)),
            (WANDA, Rule("wanda", "n_of_m", 0.5, m=8), partial(wanda, sparsity=0.5, n=4, m=8)),
        )
    ),
    Check(
        *WANDA, Rule("wanda", "row", 0.6), partial(wanda, sparsity=0.6), lambda: [_random(768, 96)],
        "of 768 inputs: 461 go, there 460", fewer=1,
    ),
    *(
        Check(*oracle, rule, theirs, problems, remark)
        for problems, remark in ((distinct, ""), (with_dead_inputs, "dead inputs"))
        for oracle, rule, theirs in (
            (SGPT, REPAIRED, sgpt),
            (SPARSEGPT, REPAIRED, partial(sparsegpt, sparsity=0.5, n=2, m=4)),
            (SPARSEGPT, Rule("sparsegpt", "tensor", 0.5), partial(sparsegpt, sparsity=0.5)),
        )
    ),
]  # fmt: skip


if __name__ == "__main__":
    main()
