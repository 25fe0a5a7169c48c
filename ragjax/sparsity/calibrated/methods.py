"""Methods: from the matrices of one block and what is known of their inputs to pruned matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ragjax.parallel.pin import pin
from ragjax.sparsity.calibrated.alps import alps
from ragjax.sparsity.calibrated.in_turn import waited_for
from ragjax.sparsity.calibrated.sparsegpt import Repaired, sparsegpt
from ragjax.sparsity.calibrated.statistics import InputStatistics, Statistics
from ragjax.sparsity.patterns import PATTERNS
from ragjax.sparsity.scores import SCORES, Evidence


class Matrices(NamedTuple):
    """The matrices of one block that are to be pruned."""

    kernels: dict[str, Float[Array, "in out"]]
    """By name in the block: 'mlp/up/kernel'."""
    statistics: Statistics
    """What is known of their inputs."""
    sparsity: dict[str, Float[Array, ""]]
    """Share of each kernel's weights that is to go."""
    key: Key[Array, ""]
    """Random key of the block."""


@dataclass(frozen=True)
class How:
    """What does not differ between blocks."""

    pattern: str = "tensor"
    """A key of `PATTERNS`, but for "global": a block does not know the others."""
    m: int = 4
    """n_of_m: consecutive inputs in a group."""
    block: tuple[int, int] = (8, 128)
    """block: inputs and outputs of a block."""
    dampening: float = 0.01
    """Added to the diagonal of a gram, as a share of its mean."""

    @property
    def every(self) -> int:
        """Inputs after which a sweep over them chooses again."""
        high = self.block[0]
        return {"n_of_m": self.m, "block": high * max(1, 128 // high)}.get(self.pattern, 128)


class Method(NamedTuple):
    """One way of pruning a block."""

    prune: Callable[[Matrices, How], dict[str, Repaired]]
    """From matrices to what is left of them, by name."""
    pattern: str = "tensor"
    """Where weights compete by its paper."""
    score: str = "wanda"
    """The row of `SCORES` by which budgets compare matrices."""
    needs_gram: bool = False
    """Whether it needs the grams of inputs."""


def _by_score(name: str, pattern: str = "tensor") -> Method:
    """Removes the lowest scores, and leaves the other weights as they are."""

    def prune(given: Matrices, how: How) -> dict[str, Repaired]:
        norms = {name: known.norms for group, known in given.statistics.items() for name in group}
        scores = SCORES[name].rank(Evidence(given.kernels, given.key, input_norms=norms))
        masks = PATTERNS[how.pattern](how)(scores, given.sparsity, 1.0)
        return {
            name: Repaired(jnp.where(masks[name], kernel, 0), masks[name], jnp.float32(0))
            for name, kernel in given.kernels.items()
        }

    return Method(prune, pattern, score=name)


def _by_repair(repair: Callable[..., Repaired], **options: Callable[[How], int]) -> Method:
    """Chooses weights by the gram of their inputs and changes those that stay.

    Matrices of one shape that read the same are worked on together. Where no dampening makes a gram usable,
    its matrices lose their lowest Wanda scores instead, and nothing is changed.
    """

    def prune(given: Matrices, how: How) -> dict[str, Repaired]:
        chosen = {name: option(how) for name, option in options.items()}
        pattern = PATTERNS[how.pattern](how)
        done: dict[str, Repaired] = {}
        for names, known in _stacks(given):
            # Whole on every device: at each of its many steps a sweep would wait for the others.
            kernels, gram = jax.tree.map(
                lambda x: pin(x, *((),) * x.ndim),
                (jnp.stack([given.kernels[name] for name in names]), known.gram),
            )
            sparsity = jnp.stack([given.sparsity[name] for name in names])
            made = repair(kernels, gram, pattern, sparsity, dampening=how.dampening, **chosen)

            def unrepaired(made=made, kernels=kernels, sparsity=sparsity, norms=known.norms):
                mask = pattern(
                    SCORES["wanda"].rank(Evidence(kernels, given.key, input_norms=norms)), sparsity, 1.0
                )
                return made._replace(kernel=jnp.where(mask, kernels, 0), mask=mask)

            made = jax.lax.cond(jnp.isfinite(made.dampening).all(), lambda made=made: made, unrepaired)
            done |= {name: jax.tree.map(lambda x, i=i: x[i], made) for i, name in enumerate(names)}
        return done

    return Method(prune, needs_gram=True)


def _stacks(given: Matrices) -> list[tuple[list[str], InputStatistics]]:
    """Names of kernels of one shape with the same inputs."""
    stacks = []
    for group, known in given.statistics.items():
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for name in group:
            by_shape.setdefault(given.kernels[name].shape, []).append(name)
        stacks += [(names, known) for names in by_shape.values()]
    return stacks


METHODS: dict[str, Method] = {
    "magnitude": _by_score("magnitude"),
    "random": _by_score("random"),
    "wanda": _by_score("wanda", pattern="row"),
    "ria": _by_score("ria", pattern="row"),
    "sparsegpt": _by_repair(sparsegpt, every=lambda how: how.every),
    "alps": _by_repair(alps),
}
"""Methods by their name in the config."""


_SAMPLED_OUTPUTS = 192
"""Outputs by which a matrix's error is measured, about; of fewer all."""


class MatrixFigures(NamedTuple):
    """What became of one matrix."""

    sparsity: Float[Array, ""]
    """Share of its weights that are 0."""
    error: Float[Array, ""] | None
    """||X W - X W'|| / ||X W|| over the calibration text, of about 200 evenly spaced outputs; none without a
    gram."""
    dampening: Float[Array, ""]
    """What its gram's diagonal was raised by, as a share of its mean; not finite: it had no factor."""
    dead_inputs: Int[Array, ""]
    """Inputs that were 0 at every token."""


Kernels = dict[str, Float[Array, "in out"]]
"""By name in the block."""


def prune_block(
    given: Matrices, *, method: str, how: How, donate: bool = False
) -> tuple[Kernels, dict[str, MatrixFigures]]:
    """Prunes the matrices of one block.

    Groups that read the same go one after another, so that the scores or the factor of one alone are there.

    Args:
      given: the matrices.
      method: a key of `METHODS`.
      how: what does not differ between blocks.
      donate: whether what is done with is taken out of the kernels and statistics given.

    Returns:
      The matrices with zeros where weights went, and figures, both by name.
    """
    kernels: Kernels = {}
    figures: dict[str, MatrixFigures] = {}
    for group in list(given.statistics):
        part = part_of(given, group)
        if donate:
            del given.statistics[group]
            for name in group:
                del given.kernels[name]
        pruned, told = waited_for(prune_matrices(part, method=method, how=how))
        kernels |= pruned
        figures |= told
    return kernels, figures


def part_of(given: Matrices, group: tuple[str, ...]) -> Matrices:
    """The matrices of a group, which read the same."""
    return given._replace(
        kernels={name: given.kernels[name] for name in group},
        statistics={group: given.statistics[group]},
        sparsity={name: given.sparsity[name] for name in group},
    )


@partial(jax.jit, static_argnames=("method", "how"))
def prune_matrices(given: Matrices, *, method: str, how: How) -> tuple[Kernels, dict[str, MatrixFigures]]:
    """Prunes matrices in one program; `prune_block` gives it one group at a time."""
    made = METHODS[method].prune(given, how)
    known = {name: stats for group, stats in given.statistics.items() for name in group}
    kernels = {name: jnp.where(one.mask, one.kernel, 0) for name, one in made.items()}
    figures = {
        name: MatrixFigures(
            jnp.mean(kernels[name] == 0, dtype=jnp.float32),
            _sampled_error(given.kernels[name], kernels[name], known[name].gram),
            one.dampening,
            jnp.sum(known[name].squares == 0),
        )
        for name, one in made.items()
    }
    return kernels, figures


def _sampled_error(
    kernel: Float[Array, "in out"], pruned: Float[Array, "in out"], gram: Float[Array, "in in"] | None
) -> Float[Array, ""] | None:
    """`output_error` by evenly spaced outputs: of a wide matrix it would cost as much as pruning it."""
    step = max(1, kernel.shape[1] // _SAMPLED_OUTPUTS)
    return output_error(kernel[:, ::step], pruned[:, ::step], gram)


def output_error(
    kernel: Float[Array, "in out"], pruned: Float[Array, "in out"], gram: Float[Array, "in in"] | None
) -> Float[Array, ""] | None:
    """||X W - X W'|| / ||X W||, from X'X; none where there is none.

    Args:
      kernel: W.
      pruned: W'.
      gram: X'X.
    """
    if gram is None:
        return None

    def energy(w):
        return jnp.sum(w * jnp.matmul(gram, w, precision=jax.lax.Precision.HIGHEST))

    lost, whole = energy(kernel - pruned), energy(kernel)
    return jnp.sqrt(jnp.maximum(lost, 0) / jnp.where(whole > 0, whole, 1))
