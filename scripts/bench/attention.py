"""How fast queries attend to keys and values in buffers: by XLA's products, and by the kernel for CPU.

GPT-2 124M's heads. A step of decoding has one query a text, whose keys end somewhere in the buffer, here in
its middle; a prompt has as many queries as keys. Twelve layers' buffers are read in turn, so that few stay in
the processor's caches, and each pass changes the queries of the next. Medians of the rounds, in which both
take turns; the ratio is the median of quotients within a round. The kernel needs `pip install '.[cpu]'`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp
from turns import in_turns, machine, waited

from ragjax.models.attention import attend_buffers, causal_mask
from ragjax.models.cached_attention import attend_cached
from ragjax.models.key_values import KeyValues

LAYERS, HEADS, HEAD, PASSES = 12, 12, 64, 10
SHAPES = {
    "1 text, 72 keys": (1, 1, 72, HEADS),
    "1 text, 1,024 keys": (1, 1, 1024, HEADS),
    "8 texts, 72 keys": (8, 1, 72, HEADS),
    "8 texts, 1,024 keys": (8, 1, 1024, HEADS),
    "8 texts, 1,024 keys, 3 heads of keys": (8, 1, 1024, 3),
    "prompt of 128": (1, 128, 128, HEADS),
    "prompt of 1,024": (1, 1024, 1024, HEADS),
}
"""Texts, queries, room for keys, heads of keys."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="times each is measured (default 9)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    options = parser.parse_args()
    found = {name: compare(*shape, rounds=options.rounds) for name, shape in SHAPES.items()}
    print(json.dumps(found | {"machine": machine()}) if options.json else table(found))


def compare(texts: int, queries: int, keys: int, kv_heads: int, *, rounds: int) -> dict[str, float]:
    """Both in turns: microseconds of a layer."""
    given = [jax.random.normal(jax.random.key(0), (texts, queries, HEADS, HEAD))]
    for layer in range(LAYERS):
        shape = (texts, kv_heads, keys, HEAD)
        given.append(KeyValues(*(jax.random.normal(jax.random.key(2 * layer + i), shape) for i in (0, 1))))
    places = jnp.arange(keys)[None]
    own = places if queries == keys else jnp.full((1, 1), keys // 2)
    mask = jnp.broadcast_to(causal_mask(own, places), (texts, queries, keys))
    ways = {"xla": products, "kernel": attend_cached}
    programs = {name: program(way, mask, few=queries == 1) for name, way in ways.items()}
    calls = {name: partial(waited, program, *given) for name, program in programs.items()}
    taken = in_turns(calls, rounds)
    each = 1e6 / LAYERS / (PASSES if queries == 1 else 1)
    ratio = median(a / b for a, b in zip(taken["xla"], taken["kernel"], strict=True))
    return {f"{name}_us": each * median(taken[name]) for name in ways} | {"times": ratio}


def products(query: jax.Array, cache: KeyValues, *, mask: jax.Array, scale: float) -> jax.Array:
    return attend_buffers(query, *cache, mask=mask, scale=scale)


def program(way: Callable, mask: jax.Array, *, few: bool) -> Callable:
    """All layers, one after another, some times over where that is short."""

    @jax.jit
    def run(query: jax.Array, *caches: KeyValues) -> jax.Array:
        def through(_, query):
            for cache in caches:
                query = query + 1e-3 * way(query, cache, mask=mask, scale=HEAD**-0.5)
            return query

        return jax.lax.fori_loop(0, PASSES if few else 1, through, query)

    return run


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [f"{'microseconds of a layer':38}{'XLA':>10}{'kernel':>10}{'times':>8}"]
    for name, row in found.items():
        lines.append(f"{name:38}{row['xla_us']:>10,.0f}{row['kernel_us']:>10,.0f}{row['times']:>8.2f}")
    return "\n".join([*lines, machine()])


if __name__ == "__main__":
    main()
