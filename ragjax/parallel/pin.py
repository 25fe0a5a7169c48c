"""How activations lie on the mesh, where GSPMD would have to guess."""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

from ragjax.parallel.mesh import BATCH_AXES


def several_devices() -> bool:
    """Whether the mesh in use has more than one device: what cuts arrays up would then move them about."""
    return jax.sharding.get_abstract_mesh().size > 1


def on_one_device(*arrays: jax.Array) -> bool:
    """Whether a program's arrays are whole where it runs, so that what knows of no mesh can take them.

    Args:
      *arrays: as they are traced. Those that lie on several devices without a mesh in use are not told apart.
    """
    mesh = jax.sharding.get_abstract_mesh()
    by_hand = jax.sharding.AxisType.Manual in mesh.axis_types
    return not (several_devices() or by_hand or any(jax.typeof(x).sharding.mesh.size > 1 for x in arrays))


def pin(x: jax.Array, *axes: tuple[str, ...]) -> jax.Array:
    """`x` split over those of the named axes that the mesh in use has; unchanged without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    present = [tuple(name for name in names if name in mesh.axis_names) or None for names in axes]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*present))


def pin_batch(x: jax.Array) -> jax.Array:
    """`x` with its first axis, the batch, split over data and fsdp; the other axes are left to GSPMD.

    Parameters are split over fsdp too, along the axis a product sums over. Left alone, GSPMD may keep
    them where they are and copy the whole batch to every device instead.
    """
    mesh = jax.sharding.get_abstract_mesh()
    present = tuple(name for name in BATCH_AXES if not mesh.empty and name in mesh.axis_names)
    if not present or x.shape[0] % math.prod(mesh.shape[name] for name in present):
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(present, *free))


def pin_heads(x: jax.Array) -> jax.Array:
    """Keys or values [batch, heads, length, head] with the batch over data and fsdp, the heads over tensor.

    Each axis is split where the mesh in use divides it, and else whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def split(names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
        present = tuple(name for name in names if name in mesh.axis_names)
        return None if size % math.prod(mesh.shape[name] for name in present) else present

    spec = PartitionSpec(split(BATCH_AXES, x.shape[0]), split(("tensor",), x.shape[1]), None, None)
    return jax.lax.with_sharding_constraint(x, spec)
