"""How fast a matrix is read that few rows are multiplied with, on GPT-2 124M's shapes: by XLA, and in panels.

A decoding step multiplies as many rows as there are texts with every matrix of the model, and is bound by
reading them. Each shape has as many matrices as a model of twelve layers (the table of tokens: one), so that
few stay in the processor's caches while all take turns. Medians of the rounds; GB of a matrix over seconds of
its product; and the milliseconds of all products of a step. `panels` needs `pip install '.[cpu]'`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp
from turns import machine

from ragjax.kernels.machine import kernels_serve
from ragjax.kernels.panels import in_panels, multiply_panels

LAYERS = 12
SHAPES = {
    "query, key, value": (768, 768, 3 * LAYERS),
    "out": (768, 768, LAYERS),
    "up": (768, 3072, LAYERS),
    "down": (3072, 768, LAYERS),
    "table": (768, 50304, 1),
}
"""Inputs, outputs, and how many there are. The table lies as its transpose, as it does in a model."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8], help="texts (default 1 2 4 8)")
    parser.add_argument("--rounds", type=int, default=15, help="times each is measured (default 15)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    options = parser.parse_args()
    result = {"rows": measure(options.rows, options.rounds), "machine": machine()}
    print(json.dumps(result) if options.json else table(result))


def measure(rows: list[int], rounds: int) -> dict:
    """GB/s of each shape, and milliseconds of all products of a step, by either."""
    programs = {
        (count, kind, name): program
        for kind in ["xla", *(["panels"] if kernels_serve() else [])]
        for name in SHAPES
        for count, program in programs_of(kind, name, rows)
    }
    seconds: dict[tuple, list[float]] = {each: [] for each in programs}
    for _ in range(rounds):
        for each, program in programs.items():
            begin = time.perf_counter()
            program()
            seconds[each].append(time.perf_counter() - begin)
    found: dict[int, dict] = {}
    for (count, kind, name), taken in seconds.items():
        inputs, outputs, many = SHAPES[name]
        told = found.setdefault(count, {}).setdefault(kind, {"gigabytes_per_second": {}, "milliseconds": 0.0})
        told["gigabytes_per_second"][name] = 4e-9 * inputs * outputs * many / median(taken)
        told["milliseconds"] += 1e3 * median(taken)
    return found


def programs_of(kind: str, name: str, rows: list[int]) -> list[tuple[int, Callable[[], None]]]:
    """The products of so many rows with all matrices of a shape, one after another, compiled."""
    inputs, outputs, many = SHAPES[name]
    lay = jax.jit(in_panels) if kind == "panels" else lambda kernel: kernel
    kernels = [lay(jax.random.normal(jax.random.key(i), (inputs, outputs))) for i in range(many)]
    if kind == "xla" and name == "table":
        kernels = [kernel.T for kernel in kernels]

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if kind == "panels":
            return multiply_panels(x, kernel, outputs)
        dims = "rd,vd->rv" if name == "table" else "rd,dv->rv"
        return jnp.einsum(dims, x, kernel, preferred_element_type=jnp.float32)

    @jax.jit
    def run(x: jax.Array, kernels: list[jax.Array]) -> jax.Array:
        for kernel in kernels:
            # All of the product is used, and none begins before the one ahead of it has ended.
            x = x + 1e-6 * product(x, kernel).sum(-1, keepdims=True)
        return x

    made = []
    for count in rows:
        x = jax.random.normal(jax.random.key(many), (count, inputs))
        run_through(run, x, kernels)
        made.append((count, partial(run_through, run, x, kernels)))
    return made


def run_through(program: Callable, *given) -> None:
    """Runs a program to its end."""
    jax.block_until_ready(program(*given))


def table(result: dict) -> str:
    """Lines for people."""
    lines = [f"{'rows':8}{'':8}" + "".join(f"{name:>19}" for name in [*SHAPES, "a step"])]
    for count, kinds in result["rows"].items():
        for kind, told in kinds.items():
            speeds = "".join(f"{speed:>14.1f} GB/s" for speed in told["gigabytes_per_second"].values())
            lines.append(f"{count:<8}{kind:8}{speeds}{told['milliseconds']:>16.1f} ms")
    return "\n".join([*lines, result["machine"]])


if __name__ == "__main__":
    main()
