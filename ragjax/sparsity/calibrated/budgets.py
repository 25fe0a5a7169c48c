"""Budgets of one-shot pruning: the sparsity of each matrix of each layer, from that of all together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from ragjax.errors import InputError, listing
from ragjax.sparsity.budgets import erdos_renyi
from ragjax.sparsity.threshold import ordered_bits

Sparsities = dict[str, Float[np.ndarray, " layers"]]
"""By name of the kernel: 'layers/mlp/up/kernel'."""
Table = Mapping[str, float | list[float]]
"""Sparsities by name pattern: one number, or one for each layer."""
ScoresOfLayer = Callable[[str, int], dict[str, Float[Array, "in out"]]]
"""From a row of `SCORES` and a layer to the scores of its kernels in the dense model, by name."""


class Census(NamedTuple):
    """What a budget may look at."""

    shapes: dict[str, tuple[int, int, int]]
    """[layers, in, out] of each kernel that may be pruned, by name."""
    sparsity: float
    """Share of all their weights that is to go."""
    scores: ScoresOfLayer
    """Scores of a layer, computed when asked for."""
    score: str
    """The row of `SCORES` that the method goes by."""
    table: Table
    """What a file says."""

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return next(iter(self.shapes.values()))[0]


Budget = Callable[[Census], Sparsities]


def uniform(census: Census) -> Sparsities:
    """The same sparsity everywhere."""
    return {name: np.full(census.layers, census.sparsity) for name in census.shapes}


def erk(census: Census) -> Sparsities:
    """Density in proportion to (in + out) / (in * out), as `erdos_renyi` has it."""
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in census.shapes.items()}
    shared = erdos_renyi(census.sparsity, shapes)
    return {name: np.full(census.layers, shared[name]) for name in census.shapes}


def owl(census: Census, *, outlier: float = 5.0, spread: float = 0.08) -> Sparsities:
    """More stays in layers with more outliers among their Wanda scores.

    The share of a layer's scores above `outlier` times their mean says how much it keeps. Densities of
    layers lie within `spread` of the overall one, or closer where that would leave [0, 1]; their mean is
    the overall one. (The authors' program lets their range be 2 `spread`, off centre where the shares
    are lopsided.)

    Args:
      census: what is known.
      outlier: M of the paper.
      spread: lambda of the paper.

    Reference:
      Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", https://arxiv.org/abs/2310.05175
    """

    def share_of_outliers(layer: int) -> float:
        scores = [np.asarray(s) for s in census.scores("wanda", layer).values()]
        size = sum(s.size for s in scores)
        mean = sum(float(s.sum(dtype=np.float64)) for s in scores) / size
        return sum(int(np.count_nonzero(s > outlier * mean)) for s in scores) / size

    shares = np.array([share_of_outliers(layer) for layer in range(census.layers)])
    off = shares - shares.mean()
    room = min(spread, census.sparsity, 1 - census.sparsity)
    # No layer stands out where they differ by rounding alone.
    largest = np.abs(off).max()
    densities = 1 - census.sparsity + (room * off / largest if largest > 1e-12 else 0 * off)
    return {name: 1 - densities for name in census.shapes}


def over_model(census: Census) -> Sparsities:
    """What each matrix would lose if all scores of the method were ranked together, in the dense model.

    Exact to one weight, and of the scores no more is in memory than a layer's: the bar is found by
    counting scores by the upper half of their bits, and then, where it lies, by the lower half.
    """
    wanted = round(census.sparsity * sum(int(np.prod(shape)) for shape in census.shapes.values()))
    if not wanted:
        return {name: np.zeros(census.layers) for name in census.shapes}

    def counted(digit: Callable[[UInt32[np.ndarray, " n"]], UInt32[np.ndarray, " n"]]):
        """How many scores have each digit: [2**16], for each layer of each kernel."""
        counts = {name: np.empty((census.layers, 1 << 16), np.int64) for name in census.shapes}
        for layer in range(census.layers):
            for name, scores in census.scores(census.score, layer).items():
                bits = np.asarray(ordered_bits(scores)).ravel()
                counts[name][layer] = np.bincount(digit(bits), minlength=1 << 16)
        return counts

    high = counted(lambda bits: bits >> 16)
    upper, missing = _bar(high, wanted)
    low = counted(lambda bits: bits[bits >> 16 == upper] & 0xFFFF)
    lower, missing = _bar(low, missing)
    gone = {name: high[name][:, :upper].sum(1) + low[name][:, :lower].sum(1) for name in census.shapes}
    # Of scores that equal the bar, those of the first layers go, and there those of the first names.
    for layer in range(census.layers):
        for name in sorted(census.shapes):
            taken = min(missing, int(low[name][layer, lower]))
            gone[name][layer] += taken
            missing -= taken
    return {name: gone[name] / np.prod(shape[1:]) for name, shape in census.shapes.items()}


def _bar(counts: dict[str, Int[np.ndarray, "layers digits"]], wanted: int) -> tuple[int, int]:
    """The digit at which `wanted` scores are reached, and how many of those that have it are among them."""
    below = np.cumsum(sum(each.sum(0) for each in counts.values()))
    bar = int(np.searchsorted(below, wanted))
    return bar, wanted - int(below[bar - 1] if bar else 0)


def from_table(census: Census) -> Sparsities:
    """What a table says of the matrices it names; the others share what is left of the whole alike.

    The first pattern that fits a name counts.

    Raises:
      InputError: a pattern fits no kernel, a sparsity is none or there is not one for each layer, or the
        whole cannot be reached.
    """
    problems = table_problems(census.table, census.shapes)
    if problems:
        raise InputError(f"The table of sparsities cannot be used:\n{listing(problems)}")
    said: Sparsities = {}
    for name in census.shapes:
        found = next((value for key, value in census.table.items() if fnmatchcase(name, key)), None)
        if found is not None:
            said[name] = np.broadcast_to(np.asarray(found, np.float64), census.layers).copy()
    sizes = {name: int(np.prod(shape)) for name, shape in census.shapes.items()}
    removed = sum(sizes[name] * values.mean() for name, values in said.items())
    rest = sum(size for name, size in sizes.items() if name not in said)
    total = sum(sizes.values())
    left = census.sparsity * total - removed
    if not rest and abs(left) > 0.001 * total:
        raise InputError(
            f"The table removes {removed / total:.2%} of the prunable weights, sparsity says "
            f"{census.sparsity:.2%}: set sparsity to {removed / total:.4f}, or leave some names out of the "
            "table, which then share what is left."
        )
    if rest and not 0 <= left / rest < 1:
        raise InputError(
            f"The table removes {removed / total:.2%} of the prunable weights, and sparsity says "
            f"{census.sparsity:.2%}: those it does not name would need {left / rest:.2%}. Change one of them."
        )
    return {
        name: said.get(name, np.full(census.layers, left / rest if rest else 0)) for name in census.shapes
    }


def table_problems(table: Table, shapes: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """What is wrong with a table of sparsities, each with the name it is about.

    Args:
      table: sparsities by name pattern.
      shapes: [layers, in, out] of the prunable kernels, by name.
    """
    layers = next(iter(shapes.values()))[0]
    problems = []
    for pattern, value in table.items():
        values = value if isinstance(value, list) else [value]
        wrong = [
            v for v in values if isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1
        ]
        if not any(fnmatchcase(name, pattern) for name in shapes):
            problems.append(f"{pattern} names no prunable parameter; there are {', '.join(shapes)}")
        if wrong:
            problems.append(f"{pattern}: a sparsity lies in [0, 1], found {wrong!r:.80}")
        if isinstance(value, list) and len(value) != layers:
            problems.append(
                f"{pattern}: one number for each of the {layers} layers was expected, found {len(value)}"
            )
    return problems


BUDGETS: dict[str, Budget] = {
    "uniform": uniform,
    "erk": erk,
    "owl": owl,
    "global": over_model,
    "table": from_table,
}
"""Budgets by their name in the config."""
