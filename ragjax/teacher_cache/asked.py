"""What a teacher says of some sequences, and what of that is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ragjax.data.batches import Batches
from ragjax.distillation.known import Drawn, Likeliest, drawn, likeliest
from ragjax.distillation.losses import centred
from ragjax.model import Model
from ragjax.models.decoder import logits
from ragjax.models.run import run_decoder
from ragjax.parallel.hosts import global_array
from ragjax.parallel.mesh import batch_shards
from ragjax.teacher_cache.manifest import Held

Known = Likeliest | Drawn


def asked(
    teacher: Model, held: Held, batches: Batches, mesh: jax.sharding.Mesh, *, chunk_tokens: int
) -> Callable[[Int[np.ndarray, " rows"]], Known]:
    """Compiles the question: numbers of windows in, what is kept of the teacher's distributions there out.

    The answer is on every device whole, so that any host may write any of it, and a row of it depends on
    its window alone.

    Args:
      teacher: the model, its parameters on the mesh.
      held: what is kept, in which types, and the type the teacher is run in.
      batches: the text and its cuts.
      mesh: the devices; the rows asked for must be divisible by the parts it splits a batch into.
      chunk_tokens: tokens per device whose scores live at once.
    """
    config, kept = teacher.config, held.kept
    shards, whole = batch_shards(mesh), NamedSharding(mesh, PartitionSpec())

    def keep(scores: Float[Array, "rows seq vocab"], keys: Array) -> Known:
        scores = centred(centred(scores) / kept.temperature)
        if kept.kind == "likeliest":
            return likeliest(scores, kept.count)
        return jax.vmap(jax.vmap(lambda row, key: drawn(row, kept.count, key)))(scores, keys)

    def answer(params: Any, read: dict[str, Array | None]) -> Known:
        tokens, window = read["tokens"], read["window"]
        assert tokens is not None
        assert window is not None
        hidden = run_decoder(
            config, params, tokens, positions=read["positions"], segments=read["segments"],
            dtype=jnp.dtype(held.computed_in),
        ).hidden  # fmt: skip
        rows, seq = tokens.shape
        parts = -(-seq // max(1, chunk_tokens * shards // rows))
        # A token's draws are a function of its place in the text, and not of how the work is cut.
        keys = jax.vmap(lambda w: jax.vmap(jax.random.fold_in, (None, 0))(w, jnp.arange(seq)))(
            jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(kept.seed), window)
        )

        def chunk(part):
            return keep(logits(params, part[0], config), part[1])

        known = jax.lax.map(chunk, (_cut(hidden, parts), _cut(keys, parts)))
        ids, log_probs = (_joined(x, seq) for x in known)
        (_, narrow), (_, dtype) = held.columns.values()
        # A probability too small for float16 must not become a logarithm of minus infinity.
        log_probs = jnp.maximum(log_probs, float(np.finfo(np.float16).min)).astype(dtype)
        return type(known)(ids.astype(narrow), log_probs)

    compiled = jax.jit(answer, out_shardings=whole)

    def ask(window: Int[np.ndarray, " rows"]) -> Known:
        batch = batches.at(window)
        host = {
            "tokens": batch.tokens, "segments": batch.segments, "positions": batch.positions,
            "window": window.astype(np.uint32),
        }  # fmt: skip
        read = {
            name: None if x is None else global_array(x.shape, np.asarray(x).__getitem__, mesh)
            for name, x in host.items()
        }
        with jax.set_mesh(mesh):
            return compiled(teacher.params, read)

    return ask


def _cut(x: Array, parts: int) -> Array:
    """[rows, seq, ...] as [parts, rows, part, ...], the last part filled up."""
    rows, seq = x.shape[:2]
    length = -(-seq // parts)
    index = jnp.minimum(jnp.arange(parts * length), seq - 1)
    return jnp.moveaxis(x[:, index].reshape(rows, parts, length, *x.shape[2:]), 1, 0)


def _joined(x: Array, seq: int) -> Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :seq]
