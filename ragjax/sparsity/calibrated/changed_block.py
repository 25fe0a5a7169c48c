"""One block of a model, changed as it goes by: given a text, changed, and handing on what it then makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from ragjax.models.blockwise import layer_of, next_hidden_in_place, one_layer
from ragjax.models.decoder import LayerData, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.calibrated.calibration import (
    Calibration,
    block_on_device,
    default_device,
    on_device,
    over,
    place_block,
)
from ragjax.sparsity.calibrated.in_turn import on_cpu, waited_for
from ragjax.sparsity.calibrated.residual_streams import Stream, handed_on
from ragjax.sparsity.calibrated.statistics import Statistics, completed, gather, gather_and_run, nothing_yet

T = TypeVar("T")
Leaves = dict[str, Array]
"""Parameters of one block by name: 'mlp/up/kernel'."""


class Watched(NamedTuple):
    """What is remembered of the inputs of a block's matrices."""

    groups: dict[tuple[str, ...], int]
    """Which matrices, from `readers`."""
    gram: bool = False
    """Whether their grams are summed."""
    sizes: bool = False
    """Whether their sizes are looked at."""


def change_block(
    config: DecoderConfig,
    layer: int,
    params: Params,
    hidden: list[Float[Stream, "rows seq width"]],
    calibration: Calibration,
    watched: Watched,
    change: Callable[[Leaves, Statistics], tuple[Leaves, T]],
) -> tuple[Leaves, T, float]:
    """Changes one block by what it is given, and hands on what it then makes of it.

    Args:
      config: the architecture.
      layer: which block.
      params: of the whole model, wherever they lie.
      hidden: the residual streams before it; those after the changed block take their place.
      calibration: where it runs.
      watched: what is remembered of its inputs.
      change: from the block's parameters and what was remembered to those that are new, and anything else;
        may take out of both what it is done with, if that is among the new.

    Returns:
      What `change` returned, and ||B'(x) - B(x)|| / ||B(x) - x|| of what block B adds to its input x, on one
      microbatch.
    """
    data, mesh = layer_of(config, layer), calibration.mesh
    # Taken from the model here, so that nobody holds the dense block when it is changed.
    block = waited_for(block_on_device(params, layer, mesh))
    leaves = flatten_dict(block, sep="/")
    with over(mesh):
        sums, before, added = _gathered(config, block, data, hidden, watched, mesh)
        del block
        new, told = waited_for(change(leaves, waited_for(completed(waited_for(sums)))))
        after = unflatten_dict(leaves | new, sep="/")
        del sums, leaves
        out = next_hidden_in_place(after, data, on_device(hidden[0], mesh), config=config)
        error = float(_distance(before, out)) / (float(added) or 1.0)
        hidden[0] = handed_on(out, hidden[0], mesh)
        del before, out
        if layer + 1 < config.layers:
            _handed_on(config, after, data, hidden, mesh, begin=1)
    return new, told, error


def pass_block(
    config: DecoderConfig,
    layer: int,
    params: Params,
    hidden: list[Float[Stream, "rows seq width"]],
    calibration: Calibration,
    new: dict[str, Shaped[np.ndarray, "..."]],
) -> None:
    """Hands on what a block makes that was changed before, without looking at what it is given.

    Args:
      config: the architecture.
      layer: which block.
      params: of the whole model, wherever they lie.
      hidden: the residual streams before it; those after it take their place.
      calibration: where it runs.
      new: what `change_block` returned of the block.
    """
    mesh = calibration.mesh
    others = {name: x for name, x in flatten_dict(params["layers"], sep="/").items() if name not in new}
    leaves = one_layer(others, layer) | new
    block = waited_for(place_block(unflatten_dict(leaves, sep="/"), mesh))
    with over(mesh):
        _handed_on(config, block, layer_of(config, layer), hidden, mesh)


def _gathered(
    config: DecoderConfig,
    block: Params,
    data: LayerData,
    hidden: list[Stream],
    watched: Watched,
    mesh: Mesh | None,
) -> tuple[Statistics, Float[Array, "rows seq width"], Float[Array, ""]]:
    """Sums over all microbatches; of the first, what the block makes, and the norm of what that adds."""
    sums, first = no_sums(watched, mesh), on_device(hidden[0], mesh)
    sums, before = gather_and_run(sums, block, data, first, config=config)
    added = _distance(waited_for(before), first)  # now: the first will be overwritten
    for x in hidden[1:]:
        sums = gather(waited_for(sums), block, data, on_device(x, mesh), config=config)
    return sums, before, added


def no_sums(watched: Watched, mesh: Mesh | None) -> Statistics:
    """`nothing_yet`, where sums over what runs on the mesh lie.

    Args:
      watched: what is to be remembered.
      mesh: the devices; none: JAX's default device.
    """
    sums = nothing_yet(watched.groups, with_gram=watched.gram, with_sizes=watched.sizes)
    # Told where to lie, as all that is added to it: else the first sum is another program's.
    return jax.device_put(sums, default_device()) if mesh is None else sums


def _handed_on(
    config: DecoderConfig,
    block: Params,
    data: LayerData,
    hidden: list[Stream],
    mesh: Mesh | None,
    *,
    begin: int = 0,
) -> None:
    """Replaces all microbatches from one on by what the block makes of them, each fetched while the next is
    computed, where programs run beside their caller; on CPU before the next is.
    """
    running: jax.Array | None = None
    for number in range(begin, len(hidden)):
        out = next_hidden_in_place(block, data, on_device(hidden[number], mesh), config=config)
        if on_cpu(out):
            hidden[number] = handed_on(waited_for(out), hidden[number], mesh)
        else:
            if running is not None:
                hidden[number - 1] = handed_on(running, hidden[number - 1], mesh)
            running = out
        del out
    if running is not None:
        hidden[-1] = handed_on(running, hidden[-1], mesh)


@jax.jit
def _distance(x: Array, y: Array) -> Float[Array, ""]:
    return jnp.linalg.norm((x - y).ravel())
