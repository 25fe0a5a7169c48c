"""How fast XLA reads a matrix that it multiplies a few rows with, on GPT-2 124M's shapes.

A decoding step multiplies as many rows as there are texts with every matrix of the model, and is bound by
reading them. Each shape has as many matrices as a model of twelve layers (the table of tokens: one), so that
none stays in the processor's caches. Least of the rounds; GB of a matrix over seconds of its product; and the
milliseconds of all products of a step.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp
from turns import machine

LAYERS = 12
SHAPES = {
    "query, key, value": (768, 768, 3),
    "out": (768, 768, 1),
    "up": (768, 3072, 1),
    "down": (3072, 768, 1),
}
"""Inputs, outputs, and how many there are in a layer."""
TABLE = (50304, 768)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8], help="texts (default 1 2 4 8)")
    parser.add_argument("--rounds", type=int, default=15, help="times each is measured (default 15)")
    options = parser.parse_args()
    found = {str(rows): of_rows(rows, options.rounds) for rows in options.rows}
    print(json.dumps({"rows": found, "machine": machine()}, indent=2))


def of_rows(rows: int, rounds: int) -> dict:
    """GB/s of each shape, and milliseconds of all products of a step."""
    told, step = {}, 0.0
    for name, (inputs, outputs, count) in SHAPES.items():
        seconds = least(rows, [(inputs, outputs)] * (LAYERS * count), "rd,dv->rv", rounds)
        told[name] = 4e-9 * inputs * outputs * LAYERS * count / seconds
        step += seconds
    seconds = least(rows, [TABLE], "rd,vd->rv", rounds)
    told["table"] = 4e-9 * TABLE[0] * TABLE[1] / seconds
    return {"gigabytes_per_second": told, "milliseconds_of_a_step": 1e3 * (step + seconds)}


def least(rows: int, shapes: list[tuple[int, int]], product: str, rounds: int) -> float:
    """Seconds of the products of some rows with matrices, one after another."""
    matrices = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    width = shapes[0][0] if product == "rd,dv->rv" else shapes[0][1]
    x = jax.random.normal(jax.random.key(len(shapes)), (rows, width))

    @jax.jit
    def run(x, matrices):
        for matrix in matrices:
            y = jnp.einsum(product, x, matrix, preferred_element_type=jnp.float32)
            # All of y is used, and no product begins before the one ahead of it has ended.
            x = x + 1e-6 * y.sum(-1, keepdims=True)
        return x

    jax.block_until_ready(run(x, matrices))
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        jax.block_until_ready(run(x, matrices))
        taken.append(time.perf_counter() - begin)
    return min(taken)


if __name__ == "__main__":
    main()
