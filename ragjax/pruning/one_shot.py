"""One-shot pruning: a trained model and a calibration text in, a sparse model out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ragjax.config import OneShot
from ragjax.errors import InputError, listing
from ragjax.interchange.json_file import read_object
from ragjax.model import Model, check_floats
from ragjax.models.names import path_name
from ragjax.parallel.mesh import batch_shards
from ragjax.pruning.block_arrays import arrays_of, block_of
from ragjax.pruning.calibration_text import drawn_text, in_microbatches, misfits
from ragjax.pruning.unfinished import going_on, identity
from ragjax.sparsity.calibrated.budgets import BUDGETS, Census, Sparsities, Table, table_problems
from ragjax.sparsity.calibrated.calibration import Calibration
from ragjax.sparsity.calibrated.methods import METHODS, How
from ragjax.sparsity.calibrated.stream import LayerFigures, dense_norms, prune_blocks
from ragjax.sparsity.figures import SparsityFigures, sparsity_figures
from ragjax.sparsity.masks import prunable
from ragjax.sparsity.scores import SCORES, Evidence

_LONGEST = 1024
"""Tokens in a calibration sequence where nobody says how many."""


class Plan(NamedTuple):
    """What a config means for a model."""

    shapes: dict[str, tuple[int, int, int]]
    """[layers, in, out] of each kernel that may be pruned, by name."""
    how: How
    """The pattern."""
    calibration: Calibration
    """The text, in microbatches."""
    table: Table
    """Sparsities by name, as a file says."""


class PruneReport(NamedTuple):
    """How a pruning went."""

    config: OneShot
    """What was asked for."""
    asked: Sparsities
    """The sparsity meant for each layer of each kernel."""
    layers: list[LayerFigures]
    """What became of each block."""
    sparsity: SparsityFigures
    """What was reached."""
    tokens: int
    """Tokens of the calibration text."""
    seconds: float
    """How long it took, without reading and writing the model."""


class Pruned(NamedTuple):
    """A sparse model, and how it came about."""

    model: Model
    report: PruneReport


def prune(
    model: Model,
    config: OneShot | None = None,
    *,
    mesh: Mesh | None = None,
    cache: str | Path | None = None,
    donate: bool = False,
    unfinished: str | Path | None = None,
    within: AbstractContextManager[Any] | None = None,
    progress: Callable[[LayerFigures], None] = lambda figures: None,
) -> Pruned:
    """Removes weights of a trained model at once, guided by what its matrices are given on a text.

    Args:
      model: the dense model, with its tokenizer; it is left as it is, unless donated.
      config: what to remove; none: half of the weights, by Wanda.
      mesh: devices that share the work; none: JAX's default device.
      cache: folder of the token cache; none: RAGJAX_CACHE, or ~/.cache/ragjax.
      donate: whether the kernels may be overwritten where they lie: no second copy, and `model` is used up.
      unfinished: folder in which each block is kept as it is done, so that the same call goes on from there;
        stays when all are, for the caller to remove. None: no block is kept.
      within: entered while blocks are pruned: what has Ctrl-C wait for the block at hand, say.
      progress: told of each block that is done here.

    Returns:
      The sparse model, whose history says what was done, and figures.

    Raises:
      InputError: the config does not fit the model, or the text is too short; says all that is wrong. Or
        `unfinished` holds something else.

    Example:
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> from ragjax.data import documents, train_tokenizer
      >>> tokenizer = train_tokenizer(documents("builtin:python", "train"), 300)
      >>> shape = DecoderConfig(vocab_size=300, positions=32, width=16, layers=1, heads=2, mlp_width=32)
      >>> model = Model(shape, init_params(shape, seed=0), tokenizer)
      >>> pruned = prune(model, OneShot(method="wanda", sparsity=0.5, samples=4))
      >>> pruned.report.sparsity.sparsity_prunable
      0.5
    """
    config = OneShot() if config is None else config
    planned = plan(model, config, mesh=mesh, cache=cache)
    began = time.monotonic()
    with going_on(
        unfinished, lambda: {"work": "prune", **described(model, config, planned)}, block_of, arrays_of
    ) as (earlier, keep):
        asked = _sparsities(model, config, planned)
        params, layers = prune_blocks(
            model.config, model.params, planned.calibration, asked,
            method=config.method, how=planned.how, seed=config.seed, donate=donate,
            done=earlier, keep=keep, within=within, progress=progress,
        )  # fmt: skip
    seconds = time.monotonic() - began + sum(layer.seconds for layer in layers[: len(earlier)])
    reached = sparsity_figures(params, model.config, tuple(planned.shapes))
    done = {
        "did": "prune",
        **asdict(config),
        "pattern": planned.how.pattern,
        "sequence_length": planned.calibration.tokens.shape[-1],
        "reached": reached.sparsity_prunable,
        "seconds": round(seconds, 1),
    }
    sparse = Model(model.config, params, model.tokenizer, (*model.history, done))
    tokens = planned.calibration.tokens.size
    return Pruned(sparse, PruneReport(config, asked, layers, reached, tokens, seconds))


def plan(
    model: Model,
    config: OneShot,
    *,
    hold_out: bool = False,
    mesh: Mesh | None = None,
    cache: str | Path | None = None,
) -> Plan:
    """What a config means for a model; refuses all that does not fit it at once.

    Args:
      model: the dense model, with its tokenizer.
      config: what to remove.
      hold_out: whether documents of the calibration source are left for measuring.
      mesh: devices that share the work; none: JAX's default device.
      cache: folder of the token cache; none: RAGJAX_CACHE, or ~/.cache/ragjax.

    Raises:
      InputError: names everything that is wrong.
    """
    check_floats(model)
    how = How(config.pattern or METHODS[config.method].pattern, config.m, config.block, config.dampening)
    shapes = _shapes(model, config)
    table = _read_table(config.table)
    length = config.sequence_length or default_length(model)
    shards = 1 if mesh is None else batch_shards(mesh)
    problems = [f"table: {problem}" for problem in table_problems(table, shapes)] if table else []
    problems += misfits(model, config.samples, length, shards)
    if how.pattern == "n_of_m":
        problems += [
            f"{name} has {shape[1]} inputs, which do not divide into groups of m = {how.m}"
            for name, shape in shapes.items()
            if shape[1] % how.m
        ]
    tokens, missing = drawn_text(model, config, length, hold_out=hold_out, cache=cache)
    problems += missing
    if problems or tokens is None:
        raise InputError(f"The model cannot be pruned so:\n{listing(problems)}")
    return Plan(shapes, how, Calibration(in_microbatches(tokens, config.batch_size, shards), mesh), table)


def described(model: Model, config: OneShot, planned: Plan) -> dict[str, Any]:
    """What is pruned, by what and how, as JSON values.

    Args:
      model: the dense model.
      config: what to remove.
      planned: what that means.
    """
    how = {**asdict(config), "pattern": planned.how.pattern, "table": planned.table}
    return how | identity(model, planned.calibration.tokens)


def default_length(model: Model) -> int:
    """Tokens in a calibration sequence where nobody says how many: the model's positions, 1024 at most."""
    return min(model.config.positions, _LONGEST)


def _shapes(model: Model, config: OneShot) -> dict[str, tuple[int, int, int]]:
    """[layers, in, out] of each kernel that may be pruned, by name."""
    chosen = jax.tree_util.tree_leaves_with_path(prunable(model.params, config.prunable))
    shapes = {path_name(path): leaf.shape for path, leaf in chosen}
    astray = [name for name in shapes if not (name.startswith("layers/") and name.endswith("/kernel"))]
    if astray:
        raise InputError(
            "prunable: only the matrices of the blocks can be pruned by calibration, as in "
            f"'layers/*/kernel'; leave these out:\n{listing(astray)}"
        )
    return shapes


def _read_table(file: str | None) -> Table:
    if file is None:
        return {}
    table = read_object(Path(file))
    if not table:
        raise InputError(
            f'table: {file} must hold sparsities by name, as in {{"layers/mlp/*/kernel": 0.5}}, found none.'
        )
    return table


def _sparsities(model: Model, config: OneShot, planned: Plan) -> Sparsities:
    """The sparsity of each layer of each kernel, by the budget."""
    norms: dict[str, Float[np.ndarray, "layers in"]] = {}
    names = tuple(planned.shapes)
    flat = flatten_dict(model.params, sep="/")

    def scores(score: str, layer: int) -> dict[str, Float[Array, "in out"]]:
        if SCORES[score].needs == "input_norms" and not norms:
            norms.update(dense_norms(model.config, model.params, names, planned.calibration))
        key = jax.random.fold_in(jax.random.key(config.seed), layer)
        of_layer = {name: known[layer] for name, known in norms.items()}
        weights = {name: flat[name][layer] for name in names}
        return SCORES[score].rank(Evidence(weights, key, input_norms=of_layer))

    assert config.sparsity is not None
    method = METHODS[config.method]
    return BUDGETS[config.budget](
        Census(planned.shapes, config.sparsity, scores, method.score, planned.table)
    )
