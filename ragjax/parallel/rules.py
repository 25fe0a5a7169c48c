"""Which array is split over which mesh axis: a table of patterns over parameter names.

The first pattern found in an array's path wins. Moments, masks and gradients carry their parameter's
path at the end of their own, so they follow it.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ragjax.errors import InputError
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.names import path_name

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding/tokens(/codes)?$", ("tensor", "fsdp")),
    (r"embedding/positions$", (None, "fsdp")),
    (r"\bhead(/codes)?$", ("tensor", "fsdp")),
    (r"(embedding/tokens|\bhead)/scale$", ("tensor",)),
    # Stacked on the layer axis: split outputs first, then inputs, so that a block needs one reduction.
    # Of a quantized kernel codes and scales [layers, inputs or groups, outputs] are split alike.
    (r"layers/attention/(query|key|value)/kernel(/(codes|scale|zero))?$", (None, "fsdp", "tensor")),
    (r"layers/attention/(query|key|value)/bias$", (None, "tensor")),
    (r"layers/attention/out/kernel(/(codes|scale|zero))?$", (None, "tensor", "fsdp")),
    (r"layers/mlp/(up|gate)/kernel(/(codes|scale|zero))?$", (None, "fsdp", "tensor")),
    (r"layers/mlp/(up|gate)/bias$", (None, "tensor")),
    (r"layers/mlp/down/kernel(/(codes|scale|zero))?$", (None, "tensor", "fsdp")),
    (r"layers/(attention/out|mlp/down)/bias$", ()),
    (r"layers/.*/kernel/input_scale$", ()),
    (r"(norm|attention_norm|mlp_norm)/(scale|bias)$", ()),
    (r"(embedding/|output_)projection/kernel$", ("fsdp", None)),
    # From the width of a student to its teacher's, one for each pair of layers.
    (r"projections/hidden$", (None, "fsdp", "tensor")),
)


def partition(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The split of one array: its rule's axes where they divide it, whole where they do not.

    Arrays no rule names, and those of another rank than their parameter (counters, factored
    moments), are kept whole on every device.
    """
    axes = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
    if not axes or len(axes) != len(shape):
        return PartitionSpec()
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of `NamedSharding`, one for each array of `tree` (or its `jax.eval_shape`)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition(path_name(path), leaf.shape, mesh)), tree
    )


def gathered(tree: Any, prefix: str = "", *, unstacked: bool = False) -> Any:
    """Parameters whole along what fsdp splits, and still split over tensor; unchanged without a mesh in use.

    For a program that reads them many times, such as a decoding loop, and would gather them each time.

    Args:
      tree: parameters.
      prefix: what comes before their names, such as layers/.
      unstacked: whether they are those of one layer, without the layer axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def whole(path, x):
        shape = (1, *x.shape) if unstacked else x.shape
        axes = tuple(partition(prefix + path_name(path), shape, mesh))[len(shape) - x.ndim :]
        return jax.lax.with_sharding_constraint(
            x, PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes))
        )

    return jax.tree_util.tree_map_with_path(whole, tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """`tree` on the mesh, split by the rules; every host has the same values."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings(tree, mesh))

    def parts(leaf, sharding):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        # Not device_put, which first sends every array whole to every device to see that hosts agree.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(parts, tree, shardings(tree, mesh))


def check_divisible(config: DecoderConfig, mesh: Mesh | AbstractMesh, *, batch_size: int) -> None:
    """Refuses a model or batch the mesh cannot split.

    Args:
      config: the model.
      mesh: the devices.
      batch_size: sequences in a microbatch over all devices.

    Raises:
      InputError: names every size that is not divisible.
    """
    tensor, split = mesh.shape["tensor"], mesh.shape["data"] * mesh.shape["fsdp"]
    found = []
    if config.heads % tensor:
        found.append(f"{config.heads} attention heads over mesh.tensor {tensor}")
    if config.kv_heads and config.kv_heads % tensor:
        found.append(f"{config.kv_heads} heads of keys and values over mesh.tensor {tensor}")
    if config.mlp_width % tensor:
        found.append(f"{config.mlp_width} MLP neurons over mesh.tensor {tensor}")
    if batch_size % split:
        found.append(f"{batch_size} sequences of a microbatch over mesh.data x mesh.fsdp = {split}")
    if found:
        raise InputError(f"Not divisible: {'; '.join(found)}. Choose another mesh or batch size.")
