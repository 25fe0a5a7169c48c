"""What this machine offers, and what is amiss."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ragjax.cache_folder import cache_folder
from ragjax.kernels.machine import compiles, kernels_serve
from ragjax.run_folder import processor_name, versions

_MATMUL = 2048


def examine() -> dict[str, Any]:
    """Versions, devices, matmul speed, disk and cache, and a list of problems with what to do about them."""
    devices = jax.devices()
    problems = []
    cards = [p for p in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0") if Path(p).exists()]
    if cards and devices[0].platform == "cpu":
        problems.append(
            f"There is an accelerator ({cards[0]}) that JAX does not use: "
            "pip install 'ragjax[tpu]' or 'ragjax[cuda]', whichever it is."
        )
    cache = cache_folder()
    there = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        problems.append(f"The cache folder {cache} cannot be written: set RAGJAX_CACHE to one that can.")
    if free < 2e9:
        problems.append(
            f"Only {free / 1e9:.1f} GB are free for the cache in {there}: set RAGJAX_CACHE elsewhere."
        )
    return {
        "versions": versions(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "devices": [f"{d.platform}: {d.device_kind}" for d in devices],
        "hosts": jax.process_count(),
        "matmul_gflops": {
            name: round(_matmul_speed(dtype) / 1e9)
            for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16))
        },
        "training": _by_kernels("float32 by blocks, compiled for this processor"),
        "decoding": _by_kernels("in panels, compiled for this processor"),
        "cache": str(cache),
        "cache_free_bytes": free,
        "problems": problems,
    }


def _matmul_speed(dtype: jnp.dtype) -> float:
    """FLOP/s of a square matrix product with float32 results on the first device; the best of five."""
    a = jnp.ones((_MATMUL, _MATMUL), dtype)
    product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * _MATMUL**3 / best


def _by_kernels(how: str) -> str:
    """Whose products are taken: how those of the kernels are made, where there are any."""
    if jax.default_backend() != "cpu":
        return "by XLA"
    if not compiles():
        return "by XLA; faster with pip install 'ragjax[cpu]'"
    if not kernels_serve():
        return "by XLA, since the custom calls of this jaxlib are not known here"
    return how


def print_findings(findings: dict[str, Any]) -> None:
    """Shows what `examine` found to a person."""
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in findings["versions"].items():
        table.add_row(name, version)
    table.add_row("processor", f"{findings['processor']}, {findings['cores']} cores")
    table.add_row(
        "devices", f"{len(findings['devices'])} x {findings['devices'][0]}, {findings['hosts']} host(s)"
    )
    speeds = ", ".join(f"{name} {speed:,} GFLOP/s" for name, speed in findings["matmul_gflops"].items())
    table.add_row("matmul", f"{speeds} (2048 x 2048, float32 results)")
    for name in ("training", "decoding"):
        table.add_row(name, escape(findings[name]))
    table.add_row("cache", f"{findings['cache']}, {findings['cache_free_bytes'] / 1e9:.0f} GB free")
    console.print(table)
    for problem in findings["problems"]:
        console.print(f"[red]problem[/red] {escape(problem)}")
    if not findings["problems"]:
        console.print("[green]Nothing is amiss.[/green]")
