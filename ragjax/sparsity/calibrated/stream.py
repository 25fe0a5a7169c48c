"""A model pruned as its blocks go by: each is given what the pruned ones before it hand on.

Of the model no more is on the device than one block's parameters, what it is given, and sums over that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ragjax.models.blockwise import layer_of, one_layer
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.hosts import to_host
from ragjax.sparsity.calibrated.budgets import Sparsities
from ragjax.sparsity.calibrated.calibration import (
    Calibration,
    block_on_device,
    default_device,
    on_device,
    over,
    placed,
)
from ragjax.sparsity.calibrated.changed_block import (
    Leaves,
    Watched,
    change_block,
    no_sums,
    pass_block,
)
from ragjax.sparsity.calibrated.methods import METHODS, How, Matrices, MatrixFigures, prune_block
from ragjax.sparsity.calibrated.residual_streams import embedded, handed_on
from ragjax.sparsity.calibrated.statistics import Statistics, gather_and_run, readers

_PREFIX = "layers/"


class LayerFigures(NamedTuple):
    """What became of one block."""

    layer: int
    """From 0."""
    error: float
    """||B'(x) - B(x)|| / ||B(x) - x|| of what block B adds to its input x, on one microbatch."""
    matrices: dict[str, MatrixFigures]
    """By name of the kernel."""
    seconds: float
    """How long it took."""


class PrunedBlock(NamedTuple):
    """A block that is done."""

    kernels: dict[str, Float[np.ndarray, "in out"]]
    """What is left of them, by name."""
    figures: LayerFigures


def prune_blocks(
    config: DecoderConfig,
    params: Params,
    calibration: Calibration,
    sparsities: Sparsities,
    *,
    method: str,
    how: How,
    seed: int = 0,
    donate: bool = False,
    done: Sequence[PrunedBlock] = (),
    keep: Callable[[int, PrunedBlock], None] | None = None,
    within: AbstractContextManager[Any] | None = None,
    progress: Callable[[LayerFigures], None] = lambda figures: None,
) -> tuple[Params, list[LayerFigures]]:
    """Prunes a model block by block.

    Args:
      config: the architecture.
      params: the dense parameters, on the host or on devices; left as they are, unless donated.
      calibration: the text.
      sparsities: share of weights that goes, of each layer of each kernel that may be pruned.
      method: a key of `METHODS`.
      how: what does not differ between blocks.
      seed: seed of random scores.
      donate: whether kernels on the devices that do the work may be overwritten; `params` are used up.
      done: the first blocks, where an earlier call has pruned them; they hand on what they make, and stay.
      keep: given each block that is done here, by its number, for a later call.
      within: entered while blocks are pruned here; none: nothing is.
      progress: told of each block that is done here.

    Returns:
      Parameters with the pruned kernels, which lie where the dense ones do, and figures of all layers.
    """
    short = [name.removeprefix(_PREFIX) for name in sparsities]
    flat = flatten_dict(params, sep="/")
    stacks = {name: _writable(flat[name], calibration.mesh, donate=donate) for name in sparsities}
    figures: list[LayerFigures] = []
    # Nobody is given anything where all are done.
    hidden = embedded(config, params, calibration) if len(done) < config.layers else []
    for layer, before in enumerate(done):
        new = {name.removeprefix(_PREFIX): kernel for name, kernel in before.kernels.items()}
        if hidden:
            pass_block(config, layer, unflatten_dict(flat | stacks, sep="/"), hidden, calibration, new)
        for name, kernel in before.kernels.items():
            stacks[name] = _with_layer(stacks[name], layer, kernel)
        figures.append(before.figures)
    groups = readers(config, one_layer(unflatten_dict(flat | stacks, sep="/")["layers"], 0), short)
    watched = Watched(groups, gram=METHODS[method].needs_gram)
    with within or nullcontext():
        for layer in range(len(done), config.layers):
            began = time.monotonic()

            def change(leaves: Leaves, sums: Statistics, layer: int = layer):
                given = Matrices(
                    {name: leaves.pop(name) for name in short},
                    sums,
                    {name: jnp.float32(sparsities[_PREFIX + name][layer]) for name in short},
                    jax.random.fold_in(jax.random.key(seed), layer),
                )
                return prune_block(given, method=method, how=how, donate=True)

            kernels, told, error = change_block(
                config, layer, unflatten_dict(flat | stacks, sep="/"), hidden, calibration, watched, change
            )
            made: dict[str, Any] = {_PREFIX + name: kernels.pop(name) for name in list(kernels)}
            matrices = {_PREFIX + name: each for name, each in to_host(told).items()}
            figures.append(LayerFigures(layer, error, matrices, time.monotonic() - began))
            if keep is not None:
                made = to_host(made)
                keep(layer, PrunedBlock(made, figures[-1]))
            # None of them is held into the next layer.
            for name in list(made):
                stacks[name] = _with_layer(stacks[name], layer, made.pop(name))
            progress(figures[-1])
    return _put_back(flat, stacks), figures


def dense_norms(
    config: DecoderConfig, params: Params, names: Sequence[str], calibration: Calibration
) -> dict[str, Float[np.ndarray, "layers in"]]:
    """Norms of the inputs of the dense model's matrices, over the calibration text.

    Args:
      config: the architecture.
      params: its parameters.
      names: of kernels: 'layers/mlp/up/kernel'.
      calibration: the text.
    """
    short = [name.removeprefix(_PREFIX) for name in names]
    hidden = embedded(config, params, calibration)
    groups = readers(config, one_layer(params["layers"], 0), short)
    norms: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for layer in range(config.layers):
        block, data = block_on_device(params, layer, calibration.mesh), layer_of(config, layer)
        with over(calibration.mesh):
            sums = no_sums(Watched(groups), calibration.mesh)
            for number, x in enumerate(hidden):
                given = on_device(x, calibration.mesh)
                sums, out = gather_and_run(sums, block, data, given, config=config)
                hidden[number] = handed_on(out, x, calibration.mesh)
        for group, known in sums.items():
            for name in group:
                norms[_PREFIX + name].append(to_host(known.norms))
    return {name: np.stack(each) for name, each in norms.items()}


Stack = np.ndarray | jax.Array
"""The kernels of all layers under one name."""


def _writable(leaf: Stack, mesh: Mesh | None, *, donate: bool) -> Stack:
    """The leaf, where it may be overwritten and lies where blocks are pruned; else a copy on the host."""
    here = {default_device()} if mesh is None else set(mesh.devices.flat)
    if donate and isinstance(leaf, jax.Array) and leaf.sharding.device_set == here:
        # Told where to lie, as what `_with_layer` makes of it, which else had programs of its own.
        return jax.device_put(leaf, leaf.sharding)
    return np.array(to_host(leaf))


def _with_layer(stack: Stack, layer: int, kernel: Stack) -> Stack:
    """The stack with one layer replaced, in its own memory; a stack on devices is used up."""
    if isinstance(stack, jax.Array):
        replace = jax.jit(_replaced, donate_argnums=0, out_shardings=stack.sharding)
        return replace(stack, layer, kernel)
    stack[layer] = to_host(kernel)
    return stack


def _replaced(stack: Array, layer: Int[Array, ""], kernel: Float[Array, "in out"]) -> Array:
    return stack.at[layer].set(kernel.astype(stack.dtype))


def _put_back(flat: dict[str, Stack], stacks: dict[str, Stack]) -> Params:
    """The parameters with the pruned kernels, each where the dense one lies."""
    for name in list(stacks):
        dense, pruned = flat[name], stacks.pop(name)
        if isinstance(dense, jax.Array) and isinstance(pruned, np.ndarray):
            pruned = placed(pruned, dense.sharding)
        flat[name] = pruned
    return unflatten_dict(flat, sep="/")
