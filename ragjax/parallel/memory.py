"""Bytes a chip holds, from shapes and sharding rules alone: without arrays and without devices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from ragjax.parallel.rules import shardings


class TrainingBytes(NamedTuple):
    """Bytes on each chip while a model is trained, activations apart."""

    parameters: int
    gradients: int
    moments: int
    """What the optimizer remembers of the gradients."""
    masks: int
    teacher: int
    """Parameters of the model learnt from."""


def bytes_per_chip(tree: Any, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of a tree's arrays on each chip, split by the rules.

    Args:
      tree: arrays, or their shapes and types from `jax.eval_shape`.
      mesh: the chips, or their number along each axis.

    Example:
      >>> import jax.numpy as jnp
      >>> mesh = AbstractMesh((1, 16, 8), ("data", "fsdp", "tensor"))
      >>> up = jax.ShapeDtypeStruct((96, 12288, 49152), jnp.bfloat16)
      >>> bytes_per_chip({"layers": {"mlp": {"up": {"kernel": up}}}}, mesh)
      905969664
    """
    where = jax.tree.leaves(shardings(tree, mesh))
    return sum(
        math.prod(split.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, split in zip(jax.tree.leaves(tree), where, strict=True)
    )


def training_bytes_per_chip(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    *,
    teacher: Any = None,
) -> TrainingBytes:
    """Bytes on each chip that a training holds besides activations.

    Args:
      params: the parameters trained, or their shapes and types.
      optimizer: what updates them; booleans in its state are masks.
      mesh: the chips, or their number along each axis.
      teacher: parameters of the model learnt from; none: there is none.
    """
    state = jax.eval_shape(optimizer.init, params)
    moments, masks = (
        jax.tree.map(lambda x, wanted=wanted: x if (x.dtype == bool) == wanted else None, state)
        for wanted in (False, True)
    )
    held = (params, params, moments, masks, teacher)
    return TrainingBytes(*(bytes_per_chip(tree, mesh) for tree in held))
