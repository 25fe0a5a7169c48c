"""Seconds and memory to load a model, beside those to read its tensors with `safetensors` alone.

Writes a random checkpoint into a folder, then loads it in fresh processes, one after another in each round,
in alternating order:

    read          every tensor copied out of the file by safetensors' `safe_open`, one at a time, and dropped
    kept          the same by its `load_file`, and kept, as whoever wants a model must
    ragjax        `ragjax.load`
    transformers  `from_pretrained` in torch, where asked for

Ratios are medians over rounds of the quotient within a round. "warm" reads the files once before, "cold"
then has the system forget them (posix_fadvise). Seconds are without imports; processor seconds are user's and
system's. Just before, each process takes as much memory as it will need and gives it back: on a virtual
machine whose host lends memory on first use, that alone may take longer than the loading.

Memory is what the process holds apart from files (RssAnon), above what it holds after imports, looked at
every 2 ms. On CPU the parameters themselves are in it; the bound is parameters + largest tensor.

    python scripts/bench/load.py --folder /tmp/load
    python scripts/bench/load.py --folder /tmp/load --layers 8 --family llama --dtype bfloat16
    python scripts/bench/load.py --model ~/.cache/ragjax/smollm2
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

WIDTH, HEADS, VOCAB = 1600, 25, 50257


def main() -> None:
    options = parse()
    if options.peer:
        print(json.dumps(run_peer(options)))
        return
    if options.model:
        folder, sizes, shape = options.model, *stored(options.model)
    else:
        folder = options.folder / f"{options.family}-{options.layers}-{options.dtype}"
        sizes, shape = write(folder, options)
    names = ["read", "kept", "ragjax"] + (["transformers"] if options.transformers else [])
    result: dict = {
        **shape,
        "stored_gb": gb(sizes["stored"]), "machine": machine(), "bound_gb": gb(sizes["bound"]),
    }  # fmt: skip
    for cache in ("warm", "cold"):
        rounds = []
        for number in range(options.rounds):
            order = names if number % 2 == 0 else names[::-1]
            rounds.append({name: measure(name, folder, cache, sizes["bound"]) for name in order})
        result[cache] = {
            name: {
                "seconds": [round(r[name]["seconds"], 2) for r in rounds],
                "processor_seconds": round(median(r[name]["processor"] for r in rounds), 2),
                "gb_per_second": round(sizes["stored"] / 1e9 / median(r[name]["seconds"] for r in rounds), 2),
                "peak_anonymous_gb": gb(max(r[name]["peak"] for r in rounds)),
                **{f"over_{other}": ratio(rounds, name, other) for other in ("read", "kept")},
            }
            for name in names
        }
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    if not options.keep and not options.model:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def show(result: dict) -> None:
    """The figures as a table."""
    shape = result["geometry"]
    print(f"{result['family']}, {shape['layers']} layers of width {shape['width']}, {result['stored_gb']} GB")
    print(f"{'':<22}{'seconds':>10}{'GB/s':>8}{'/ read':>8}{'/ kept':>8}{'peak GB':>9}")
    for cache in ("warm", "cold"):
        for name, found in result[cache].items():
            row = f"{median(found['seconds']):>10.2f}{found['gb_per_second']:>8.2f}{found['over_read']:>8.2f}"
            print(
                f"{name + ', ' + cache:<22}{row}{found['over_kept']:>8.2f}{found['peak_anonymous_gb']:>9.2f}"
            )
    print(f"bound of the memory: {result['bound_gb']} GB. {result['machine']}")


def ratio(rounds: list[dict], one: str, other: str) -> float:
    return round(median(r[one]["seconds"] / r[other]["seconds"] for r in rounds), 2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--folder", type=Path, help="where a random checkpoint is written")
    where.add_argument("--model", type=Path, help="a Hugging Face folder that is there, read as it is")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint there, and use one that is")
    parser.add_argument("--layers", type=int, default=48, help="transformer blocks (default 48, 1.5B)")
    parser.add_argument(
        "--family", choices=("gpt2", "llama"), default="gpt2", help="llama: [out, in] weights"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="as stored")
    parser.add_argument("--rounds", type=int, default=3, help="loads of each, warm and cold (default 3)")
    parser.add_argument("--transformers", action="store_true", help="also measure from_pretrained in torch")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peer", choices=tuple(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--touch", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--cache", choices=("warm", "cold"), help=argparse.SUPPRESS)
    return parser.parse_args()


def write(folder: Path, options: argparse.Namespace) -> tuple[dict[str, int], dict]:
    """Writes the checkpoint of random weights; returns as `stored` does."""
    import numpy as np

    from ragjax.interchange.families import FAMILIES
    from ragjax.interchange.tensors import write_tensors
    from ragjax.models.decoder_config import DecoderConfig, Rotary

    config = DecoderConfig(VOCAB, 1024, WIDTH, options.layers, HEADS, 4 * WIDTH)
    if options.family == "llama":
        config = DecoderConfig(
            VOCAB, 1024, WIDTH, options.layers, HEADS, 4 * WIDTH, kv_heads=5, learned_positions=False,
            rotary=Rotary(), norm="rms", gated=True, attention_bias=False, attention_out_bias=False,
            mlp_bias=False, activation="silu",
        )  # fmt: skip
    family = FAMILIES[options.family]
    shapes = {tensor.name: tensor.shape for tensor in family.layout(config).stored}
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        block = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
        write_tensors(
            folder, shapes, lambda name: np.resize(block, shapes[name]),
            dtype=options.dtype, shard_bytes=1_000_000_000,
        )  # fmt: skip
        (folder / "config.json").write_text(json.dumps(family.config_to(config)))
        os.sync()
    return stored(folder)


def stored(folder: Path) -> tuple[dict[str, int], dict]:
    """Bytes of a model's tensors, and bytes that loading it may hold at most; and what model it is."""
    from ragjax.interchange.families import family_of
    from ragjax.interchange.layout import parameter_shapes
    from ragjax.interchange.tensors import open_tensors

    values = json.loads((folder / "config.json").read_text())
    config = family_of(values).config_from(values)
    tensors = open_tensors(folder)
    sizes = [tensors.read(name).nbytes for name in tensors.shapes]
    # In memory parameters are float32; the largest tensor is as it is stored.
    held = 4 * sum(math.prod(shape) for shape in parameter_shapes(config).values())
    shape = {"layers": config.layers, "width": config.width, "vocab_size": config.vocab_size}
    about = {
        "family": values["model_type"],
        "dtypes": sorted(set(tensors.dtypes.values())),
        "geometry": shape,
    }
    return {"stored": sum(sizes), "bound": held + max(sizes)}, about


def measure(name: str, folder: Path, cache: str, memory: int) -> dict:
    """One load in a process of its own, which touches so much memory first."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--peer", name, "--folder", str(folder)]
    command += ["--touch", str(memory), "--cache", cache]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_peer(options: argparse.Namespace) -> dict:
    """Seconds and peak memory of one way to load."""
    load = PEERS[options.peer](options.folder)
    touch(options.touch)
    for file in options.folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass
            if options.cache == "cold":
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Peak() as peak:
        start, used = time.perf_counter(), time.process_time()
        loaded = load()
        seconds, processor = time.perf_counter() - start, time.process_time() - used
    del loaded
    return {"seconds": seconds, "processor": processor, "peak": peak.bytes}


def touch(size: int) -> None:
    """Takes memory, and gives it back."""
    import numpy as np

    np.empty(size, np.uint8)[:: mmap.PAGESIZE] = 1


def read_peer(folder: Path):
    """Every tensor, read and dropped."""
    import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
    from safetensors import safe_open

    def load():
        total = 0.0
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    total += float(opened.get_tensor(name).reshape(-1)[0])
        return total

    return load


def kept_peer(folder: Path):
    """Every tensor, read and kept."""
    import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
    from safetensors.numpy import load_file

    return lambda: [load_file(file) for file in sorted(folder.glob("*.safetensors"))]


def ragjax_peer(folder: Path):
    """`ragjax.load`, after JAX has started."""
    import jax

    from ragjax.interchange import load

    jax.block_until_ready(jax.numpy.zeros(()))
    return lambda: jax.block_until_ready(load(folder).params)


def transformers_peer(folder: Path):
    """The same in torch, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


PEERS = {"read": read_peer, "kept": kept_peer, "ragjax": ragjax_peer, "transformers": transformers_peer}


class Peak:
    """The most anonymous memory this process holds while inside, above that at its beginning."""

    def __enter__(self) -> Peak:
        self.bytes, self._base = 0, anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes() - self._base)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous_bytes() - self._base)


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])


def gb(size: float) -> float:
    return round(size / 1e9, 3)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores, {model or platform.processor()}"


if __name__ == "__main__":
    main()
