"""The matrices of one block, quantized by what they are given on a calibration text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.pin import pin
from ragjax.quantization.awq import activation_aware
from ragjax.quantization.folding import folded, maker, tied
from ragjax.quantization.gptq import OnGrid, gptq
from ragjax.quantization.grid import from_codes, grid, to_codes
from ragjax.quantization.quantized import Quantized, encoded
from ragjax.quantization.scheme import Scheme
from ragjax.quantization.smoothquant import smoothing
from ragjax.sparsity.calibrated.changed_block import Leaves
from ragjax.sparsity.calibrated.methods import output_error
from ragjax.sparsity.calibrated.statistics import InputStatistics, Statistics

Tie = Callable[[Float[Array, " in"]], Float[Array, " in"]]
Kernel = Float[Array, "in out"]


@dataclass(frozen=True)
class How:
    """What does not differ between blocks."""

    scheme: Scheme
    names: tuple[str, ...]
    """The kernels that are quantized: 'mlp/up/kernel'."""
    dampening: float = 0.01
    """gptq: added to the diagonal of a gram, as a share of its mean."""
    order: bool = False
    """gptq: whether inputs are visited by how large they are, not as they lie."""
    strength: float = 0.5
    """smoothquant: how much of the sizes of activations moves into the weights."""


def _nearest(kernel: Kernel, known: InputStatistics, how: How) -> OnGrid:
    found = grid(kernel, how.scheme)
    codes = to_codes(kernel, found, how.scheme)
    return OnGrid(from_codes(codes, found, how.scheme), found, jnp.float32(0))


class Method(NamedTuple):
    """One way of quantizing a block by what it is given.

    Kernels that read the same come side by side: no output of theirs depends on another.
    """

    divide: Callable[[Kernel, InputStatistics, How, Tie], Float[Array, " in"]] | None = None
    """From kernels and their inputs to divisors of the inputs, by which the weights are multiplied; none:
    neither is."""
    settle: Callable[[Kernel, InputStatistics, How], OnGrid] = _nearest
    """From kernels and their inputs to kernels on a grid."""
    sizes: bool = False
    """Whether it looks at the sizes of inputs."""


def _gptq(kernel: Kernel, known: InputStatistics, how: How) -> OnGrid:
    assert known.gram is not None
    return gptq(kernel, known.gram, how.scheme, dampening=how.dampening, order=how.order)


def _awq(kernel: Kernel, known: InputStatistics, how: How, tie: Tie) -> Float[Array, " in"]:
    assert known.gram is not None
    assert known.sizes is not None
    return activation_aware(kernel, known.gram, known.sizes.total, how.scheme, tie=tie)


def _smoothquant(kernel: Kernel, known: InputStatistics, how: How, tie: Tie) -> Float[Array, " in"]:
    assert known.sizes is not None
    return tie(smoothing(known.sizes.largest, jnp.abs(kernel).max(1), strength=how.strength))


CALIBRATED: dict[str, Method] = {
    "gptq": Method(settle=_gptq),
    "awq": Method(divide=_awq, sizes=True),
    "smoothquant": Method(divide=_smoothquant, sizes=True),
}
"""Methods that read a calibration text, by their name in the config."""


class QuantizedFigures(NamedTuple):
    """What became of one matrix."""

    error: Float[Array, ""]
    """||X W - X W'|| / ||X W|| over the calibration text, of the weights alone."""
    dampening: Float[Array, ""]
    """What its gram's diagonal was raised by, as a share of its mean; not finite: it had no factor."""
    dead_inputs: Int[Array, ""]
    """Inputs that were 0 at every token."""


class QuantizedBlock(NamedTuple):
    """A block after it was quantized."""

    run: Leaves
    """What is new of its parameters, as plain arrays that compute what the quantized ones do."""
    kept: dict[str, Array | Quantized]
    """What is new of its parameters, as they are kept."""
    figures: dict[str, QuantizedFigures]
    """By name of the kernel."""


@partial(jax.jit, static_argnames=("config", "method", "how"))
def quantize_block(
    leaves: Leaves, statistics: Statistics, *, config: DecoderConfig, method: str, how: How
) -> QuantizedBlock:
    """Quantizes the matrices of one block.

    Args:
      leaves: its parameters by name.
      statistics: what is known of the inputs of all its matrices, with grams.
      config: the architecture.
      method: a key of `CALIBRATED`.
      how: what does not differ between blocks.
    """
    way = CALIBRATED[method]
    # Whole on every device: at each of its many steps a sweep would wait for the others.
    after, known = jax.tree.map(_whole, (leaves, statistics))
    chosen = {group: names for group in known if (names := [name for name in group if name in how.names])}
    divisors: dict[tuple[str, ...], Float[Array, " in"]] = {}
    moved: Leaves = {}
    if way.divide is not None:
        for group, names in chosen.items():
            made_by = maker(config, group)
            tie = partial(tied, config, made_by)
            divisors[group] = way.divide(_side_by_side(after, names), known[group], how, tie)
        for group in chosen:
            moved |= folded(config, after | moved, group, maker(config, group), divisors[group])
    after |= moved

    run = {name: leaf for name, leaf in moved.items() if name not in how.names}
    kept: dict[str, Array | Quantized] = {**run}
    figures = {}
    for group, names in chosen.items():
        sums, divided = known[group], divisors.get(group)
        if divided is not None:
            sums = _divided(sums, divided)
        # What no parameter can divide by is divided by where the inputs are read.
        here = divided if maker(config, group) is None else None
        kernels = _side_by_side(after, names)
        if here is not None:
            kernels = kernels * here[:, None]
        ends = np.cumsum([after[name].shape[1] for name in names])[:-1].tolist()
        settled = way.settle(kernels, sums, how)
        for name, dense, point, own in zip(
            names, *(_split(tree, ends) for tree in (kernels, settled.kernel, settled.grid)), strict=True
        ):
            made = encoded(to_codes(point, own, how.scheme), own, how.scheme, here)
            kept[name], run[name] = made, made.whole()
            error = output_error(dense, point, sums.gram)
            assert error is not None
            figures[name] = QuantizedFigures(error, settled.dampening, jnp.sum(sums.squares == 0))
    return QuantizedBlock(run, kept, figures)


def _side_by_side(leaves: Leaves, names: Sequence[str]) -> Kernel:
    return jnp.concatenate([leaves[name].astype(jnp.float32) for name in names], 1)


def _split(tree: Any, ends: Sequence[int]) -> list[Any]:
    """What lies side by side, apart again."""
    begins = [0, *ends]
    return [
        jax.tree.map(lambda x, i=i, j=j: x[:, i:j], tree) for i, j in zip(begins, [*ends, None], strict=True)
    ]


def _divided(known: InputStatistics, divisors: Float[Array, " in"]) -> InputStatistics:
    """What would be known of the inputs, were they divided."""
    gram, sizes = known.gram, known.sizes
    return InputStatistics(
        known.squares / jnp.square(divisors),
        None if gram is None else gram / divisors[:, None] / divisors,
        None if sizes is None else jax.tree.map(lambda x: x / divisors, sizes),
    )


def _whole(x: Array) -> Array:
    return pin(x, *((),) * x.ndim)
