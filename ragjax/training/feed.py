"""Batches on the mesh: every host makes only the rows its devices hold."""

from __future__ import annotations

import jax
import numpy as np

from ragjax.data.batches import Batch, Batches
from ragjax.parallel.hosts import global_array


def batch_on_mesh(batches: Batches, step: int, mesh: jax.sharding.Mesh, *, accumulate: int = 1) -> Batch:
    """The batch of `step`, each array [accumulate, batch_size / accumulate, seq] and split over the mesh."""
    micro = batches.batch_size // accumulate
    made: dict[tuple[int, int], Batch] = {}

    def rows(wanted: slice) -> Batch:
        start, stop, _ = wanted.indices(micro)
        if (start, stop) not in made:
            parts = [
                batches.batch(step, slice(i * micro + start, i * micro + stop)) for i in range(accumulate)
            ]
            made[start, stop] = jax.tree.map(lambda *arrays: np.stack(arrays), *parts)
        return made[start, stop]

    shape = (accumulate, micro, batches.sequence_length)

    def whole(name: str) -> jax.Array:
        return global_array(shape, lambda wanted: getattr(rows(wanted), name), mesh, axis=1)

    empty = rows(slice(0, 0))
    return empty._replace(
        **{name: whole(name) for name, value in empty._asdict().items() if value is not None}
    )
