"""What is remembered of the inputs of a block's matrices: sums over the tokens of a calibration text."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.models.blockwise import BlockRun, layer_of, run_block
from ragjax.models.decoder import LayerData, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.pin import pin
from ragjax.sparsity.calibrated.gram import whole, with_gram


class InputSizes(NamedTuple):
    """How large the inputs of a matrix are."""

    total: Float[Array, " in"]
    """Sum of |x_j|."""
    largest: Float[Array, " in"]
    """Maximum of |x_j|."""


class InputStatistics(NamedTuple):
    """Sums over the tokens x that a matrix was multiplied with."""

    squares: Float[Array, " in"]
    """Sum of x_j^2."""
    gram: Float[Array, "in in"] | None = None
    """Sum of x x'; none where nobody asked for it. Before `completed` its upper half alone is to be read."""
    sizes: InputSizes | None = None
    """None where nobody asked for them."""

    @property
    def norms(self) -> Float[Array, " in"]:
        """Euclidean norm of each input over all tokens."""
        return jnp.sqrt(self.squares)


Statistics = dict[tuple[str, ...], InputStatistics]
"""By the names of the kernels that read the same: once for all of them."""


def readers(config: DecoderConfig, block: Params, names: Collection[str]) -> dict[tuple[str, ...], int]:
    """Which matrices of a block read the same, and how many inputs that has.

    Args:
      config: the architecture.
      block: parameters of one block, or anything with their shapes.
      names: the kernels that are asked about: 'mlp/up/kernel'.
    """
    groups: dict[tuple[str, ...], int] = {}

    def look(block: Params, layer: LayerData, hidden: Array) -> None:
        by_input: dict[int, list[str]] = {}
        run = run_block(config, block, layer, hidden)
        for name in sorted(run.inputs.keys() & set(names)):
            by_input.setdefault(id(run.inputs[name]), []).append(name)
        groups.update({tuple(group): run.inputs[group[0]].shape[-1] for group in by_input.values()})

    layer = jax.eval_shape(lambda: layer_of(config, 0))
    jax.eval_shape(look, block, layer, jax.ShapeDtypeStruct((1, 1, config.width), jnp.float32))
    return groups


def nothing_yet(
    groups: dict[tuple[str, ...], int], *, with_gram: bool, with_sizes: bool = False
) -> Statistics:
    """Statistics of no token.

    Args:
      groups: from `readers`.
      with_gram: whether grams are summed too.
      with_sizes: whether sizes are looked at too.
    """
    # Compiled, so that they lie as `gather` hands them back.
    return _zeros(tuple(groups.items()), with_gram, with_sizes)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(groups: tuple[tuple[tuple[str, ...], int], ...], with_gram: bool, with_sizes: bool) -> Statistics:
    def nothing(size: int) -> Float[Array, " in"]:
        return pin(jnp.zeros(size), ())

    return {
        group: InputStatistics(
            nothing(size),
            _by_rows(jnp.zeros((size, size))) if with_gram else None,
            InputSizes(nothing(size), nothing(size)) if with_sizes else None,
        )
        for group, size in groups
    }


def _added(sums: Statistics, run: BlockRun) -> Statistics:
    def add(group: tuple[str, ...], so_far: InputStatistics) -> InputStatistics:
        x = run.inputs[group[0]]
        squares = pin(so_far.squares + jnp.square(x.astype(jnp.float32)).sum((0, 1)), ())
        grown = None if so_far.gram is None else _by_rows(with_gram(so_far.gram, x))
        return InputStatistics(squares, grown, None if so_far.sizes is None else larger(so_far.sizes, x))

    def larger(so_far: InputSizes, x: Float[Array, "batch seq in"]) -> InputSizes:
        size = jnp.abs(x.astype(jnp.float32))
        return InputSizes(
            pin(so_far.total + size.sum((0, 1)), ()),
            pin(jnp.maximum(so_far.largest, size.max((0, 1))), ()),
        )

    return {group: add(group, so_far) for group, so_far in sums.items()}


def _by_rows(matrix: Float[Array, "in in"]) -> Float[Array, "in in"]:
    """Split by rows over the devices that share a layer, where that comes out even."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "tensor" not in mesh.axis_names or matrix.shape[0] % mesh.shape["tensor"]:
        return matrix
    return pin(matrix, ("tensor",), ())


@partial(jax.jit, donate_argnames="sums")
def completed(sums: Statistics) -> Statistics:
    """Sums of all tokens, as they may be read: the last step after `gather`.

    Args:
      sums: what was gathered, which is used up.
    """

    def complete(known: InputStatistics) -> InputStatistics:
        return known if known.gram is None else known._replace(gram=_by_rows(whole(known.gram)))

    return {group: complete(known) for group, known in sums.items()}


@partial(jax.jit, static_argnames="config", donate_argnames="sums")
def gather(
    sums: Statistics,
    block: Params,
    layer: LayerData,
    hidden: Float[Array, "batch seq width"],
    *,
    config: DecoderConfig,
) -> Statistics:
    """Adds the tokens of one microbatch; of the block, no more is computed than its matrices are given.

    Args:
      sums: statistics so far, which are used up.
      block: the block's parameters, without a layer axis.
      layer: its scale and window.
      hidden: the residual stream before it.
      config: the architecture.
    """
    return _added(sums, run_block(config, block, layer, hidden))


@partial(jax.jit, static_argnames="config", donate_argnames="sums")
def gather_and_run(
    sums: Statistics,
    block: Params,
    layer: LayerData,
    hidden: Float[Array, "batch seq width"],
    *,
    config: DecoderConfig,
) -> tuple[Statistics, Float[Array, "batch seq width"]]:
    """`gather`, and the residual stream after the block."""
    run = run_block(config, block, layer, hidden)
    return _added(sums, run), run.hidden
