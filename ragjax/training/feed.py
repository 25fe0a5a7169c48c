"""Batches on the mesh: every host makes only the rows its devices hold."""

from __future__ import annotations

import jax
import numpy as np

from ragjax.data.batches import Batch, Batches
from ragjax.parallel.hosts import global_array


def batch_on_mesh(batches: Batches, step: int, mesh: jax.sharding.Mesh, *, accumulate: int = 1) -> Batch:
    """The batch of `step`, each array [accumulate, batch_size / accumulate, seq, ...], on the mesh."""
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

    arrays, structure = jax.tree.flatten(rows(slice(0, 0)))

    def whole(number: int) -> jax.Array:
        return global_array(
            (accumulate, micro, *arrays[number].shape[2:]),
            lambda wanted: jax.tree.leaves(rows(wanted))[number],
            mesh,
            axis=1,
        )

    return jax.tree.unflatten(structure, [whole(number) for number in range(len(arrays))])
