"""Tokens per second and memory of one full train step, beside the same step in torch.

The step is forward, backward, clipping to global norm 1 and AdamW (weight decay on every parameter) of a
GPT-2 from a random start, without dropout, on random tokens: `ragjax.training.make_step` against torch
eager (transformers' GPT2LMHeadModel, scaled_dot_product_attention, torch.optim.AdamW, clip_grad_norm_;
bfloat16 by autocast over float32 parameters, as ours). Each runs in a process of its own and sleeps while
the other works; a round is two steps of each, of which the second is timed, in alternating order, and the
ratio is the median over rounds of the quotient within a round. The peak of XLA's matrix product is measured
in every round, in our process.

Model FLOPs of a token: 6 (12 L D^2 + V D) + 12 L S D for L layers, width D, vocabulary V and sequence S:
two for each multiplication, three products for each matrix (forward, and two gradients), attention counted in
full. Peak memory is the growth of the process's resident set above what it is after imports; with --device
cuda, what each takes of the graphics card.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from statistics import median

from turns import JaxCard, Peer, Resident, TorchCard, device_name, machine, serve, use

WIDTH, HEADS, VOCAB = 768, 12, 50257
PEAK_SIZE = {"cpu": 3072, "cuda": 8192}


def main() -> None:
    options = parse()
    use(options.device)
    if options.peer:
        serve(lambda: PEERS[options.peer](options))
        return
    result = compile_depth(options) if options.compile_depth else compare(options)
    print(json.dumps(result, indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2, help="sequences in a step (default 2)")
    parser.add_argument("--length", type=int, default=512, help="tokens in a sequence (default 512)")
    parser.add_argument("--layers", type=int, default=12, help="transformer blocks (default 12)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument("--compile-torch", action="store_true", help="torch.compile torch's network")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each that are timed (default 7)")
    parser.add_argument("--chunk-tokens", type=int, default=128, help="distill.chunk_tokens (default 128)")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none", help="train.remat")
    parser.add_argument(
        "--no-torch", action="store_true", help="measure ragjax alone (torch and its ratio are left out)"
    )
    parser.add_argument(
        "--compile-depth",
        action="store_true",
        help="instead: seconds to compile 12 and 48 layers, without running them",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    parser.add_argument("--peer", choices=("ragjax", "torch", "compile"), help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """Both steps in turns, the matmul peak, and the compile times."""
    names = ["ragjax"] if options.no_torch else ["ragjax", "torch"]
    peers = {name: Peer(name) for name in names}
    rounds: list[dict] = []
    for number in range(options.rounds):
        order = names if number % 2 == 0 else names[::-1]
        rounds.append({name: peers[name].ask_warm("step") for name in order})
        rounds[-1]["peak"] = peers["ragjax"].ask("peak")
    closing = {name: peer.close() for name, peer in peers.items()}

    tokens = options.batch * options.length
    flops = tokens * model_flops(options.layers, options.length)
    result: dict = {
        "geometry": {"layers": options.layers, "width": WIDTH, "heads": HEADS, "vocab_size": VOCAB},
        "batch": options.batch, "length": options.length, "dtype": options.dtype, "rounds": options.rounds,
        "machine": device_name(options.device),
        "torch_compiled": options.compile_torch,
        "versions": {k: v for c in closing.values() for k, v in c["versions"].items()},
        "model_flops_per_step": flops,
    }  # fmt: skip
    for name in names:
        seconds = [r[name]["seconds"] for r in rounds]
        result[name] = {
            "tokens_per_second": round(tokens / median(seconds), 1),
            "seconds_per_step": [round(s, 3) for s in seconds],
            "cpu_seconds_per_step": round(median(r[name]["cpu_seconds"] for r in rounds), 3),
            "peak_memory_mb": round(closing[name]["peak_mb"]),
        }
    if not options.no_torch:
        result["speed_ratio"] = round(
            median(r["torch"]["seconds"] / r["ragjax"]["seconds"] for r in rounds), 3
        )
        result["memory_ratio"] = round(closing["ragjax"]["peak_mb"] / closing["torch"]["peak_mb"], 3)
    peak = [r["peak"]["flops"] / r["peak"]["seconds"] for r in rounds]
    share = median(flops / r["ragjax"]["seconds"] / rate for r, rate in zip(rounds, peak, strict=True))
    result["matmul_peak_gflops"] = round(median(peak) / 1e9)
    result["share_of_matmul_peak"] = round(share, 3)
    result["compile_seconds"] = compile_times(options)
    return result


def compile_depth(options: argparse.Namespace) -> dict:
    """Compile times of 12 and 48 layers."""
    times = {}
    for layers in (12, 48):
        options.layers = layers
        times[f"layers_{layers}"] = compile_times(options)
    ratio = times["layers_48"]["cold"] / times["layers_12"]["cold"]
    return {"compile_seconds": times, "ratio": round(ratio, 2), "dtype": options.dtype, "machine": machine()}


def compile_times(options: argparse.Namespace) -> dict[str, float]:
    """Seconds to trace and compile the step, with an empty persistent cache and with a full one."""
    with tempfile.TemporaryDirectory() as cache:
        return {
            name: round(
                Peer("compile", "--layers", str(options.layers), **empty_cache(cache)).close()[
                    "compile_seconds"
                ],
                2,
            )
            for name in ("cold", "cached")
        }


def empty_cache(folder: str) -> dict[str, str]:
    """Variables by which programs are kept in a folder and nowhere else."""
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def model_flops(layers: int, length: int) -> int:
    """Of one token, forward and backward."""
    return 6 * (12 * layers * WIDTH**2 + VOCAB * WIDTH) + 12 * layers * length * WIDTH


def ragjax_peer(options: argparse.Namespace):
    """Our step, compiled and run twice; then the products that show the peak."""
    import jax
    import jax.numpy as jnp

    from ragjax.models.decoder import init_params
    from ragjax.training.state import init_state

    memory = Resident() if options.device == "cpu" else JaxCard()
    step, config, optimizer, mesh, batch = our_step(options)
    state = init_state(init_params(config, seed=0), optimizer, mesh)
    with jax.set_mesh(mesh):
        step = step.lower(state, (), batch).compile()

    def once():
        nonlocal state
        state, metrics = step(state, (), batch)
        jax.block_until_ready((state, metrics))

    once()
    memory.forget_peak()
    once()

    # Filled before its first round, and empty while steps are measured.
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    size, highest = PEAK_SIZE[options.device], []

    def peak():
        highest.append(memory.peak_mb())
        square = jnp.ones((size, size), options.dtype)
        jax.block_until_ready(product(square))
        start = time.perf_counter()
        for _ in range(3):
            jax.block_until_ready(product(square))
        answer = {"seconds": time.perf_counter() - start, "flops": 3 * 2 * size**3}
        del square
        memory.forget_peak()
        return answer

    versions = {"python": platform.python_version(), "jax": jax.__version__}
    return {"step": once, "peak": peak}, lambda: {"peak_mb": highest[0], "versions": versions}


def our_step(options: argparse.Namespace):
    """The step `ragjax train` takes: its parts before they are compiled."""
    import jax
    import numpy as np

    from ragjax.config import Distill, Mesh, Train
    from ragjax.data.batches import Batch
    from ragjax.distillation.objective import Objective
    from ragjax.models.decoder_config import DecoderConfig
    from ragjax.parallel.mesh import make_mesh
    from ragjax.training.optimizer import make_optimizer
    from ragjax.training.step import make_step

    config = DecoderConfig(
        vocab_size=VOCAB, positions=max(1024, options.length), width=WIDTH, layers=options.layers,
        heads=HEADS, mlp_width=4 * WIDTH,
    )  # fmt: skip
    losses = Distill(forward_kl=0.0, cross_entropy=1.0, chunk_tokens=options.chunk_tokens)
    objective = Objective(config, (), losses, dtype=jax.numpy.dtype(options.dtype), remat=options.remat)
    optimizer = make_optimizer(Train(dtype=options.dtype))
    text = np.random.default_rng(0).integers(0, VOCAB, (1, options.batch, options.length + 1), np.int32)
    batch = Batch(text[..., :-1], text[..., 1:], np.ones(text[..., 1:].shape, np.float32))
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    return make_step(objective, optimizer, clip=1.0), config, optimizer, mesh, batch


def torch_peer(options: argparse.Namespace):
    """The same step in torch eager, run twice."""
    import torch
    import transformers

    memory = Resident() if options.device == "cpu" else TorchCard()
    torch.manual_seed(0)
    torch.set_default_device(options.device)
    config = transformers.GPT2Config(
        n_layer=options.layers, n_positions=max(1024, options.length),
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").train()
    if options.compile_torch:
        model.transformer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(0, VOCAB, (options.batch, options.length))
    bfloat16 = options.dtype == "bfloat16"

    def once():
        with torch.autocast(options.device, torch.bfloat16, enabled=bfloat16):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if options.device == "cuda":
            torch.cuda.synchronize()

    once()
    memory.forget_peak()
    once()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"step": once}, lambda: {"peak_mb": memory.peak_mb(), "versions": versions}


def compile_peer(options: argparse.Namespace):
    """Traces and compiles our step for shapes alone."""
    import jax

    from ragjax.models.decoder import init_params
    from ragjax.training.state import init_state

    step, config, optimizer, mesh, batch = our_step(options)
    state = jax.eval_shape(lambda: init_state(init_params(config, seed=0), optimizer, mesh))
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        step.lower(state, (), batch).compile()
    seconds = time.perf_counter() - start
    return {}, lambda: {"compile_seconds": seconds}


PEERS = {"ragjax": ragjax_peer, "torch": torch_peer, "compile": compile_peer}

if __name__ == "__main__":
    main()
