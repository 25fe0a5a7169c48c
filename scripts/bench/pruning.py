"""Seconds and memory of one-shot pruning, beside the same algorithm in torch as the papers' programs have it.

A GPT-2 of the 124M geometry with random weights is pruned to 50 % with random tokens: statistics of every
matrix's inputs, the pruning of each block, and the pruned block's outputs for the next (not after the last).
Ours is `ragjax.sparsity.calibrated.stream.prune_blocks`, which also measures errors. Torch's is written here
in the way of the programs that Wanda's and SparseGPT's authors published: transformers' blocks with forward
hooks, c_attn in one matrix, X'X by addmm, cholesky, cholesky_inverse and cholesky again, a loop over the
columns of each 128. (So torch ranks queries, keys and values together, and ours each alone: the same work,
other masks.)

Each runs in a process of its own and sleeps while the other works; a round is one pruning of each, in
alternating order, the second of two in a row (`turns.Peer.ask_warm`), and a ratio is the median over rounds
of the quotient within a round: of the time that passed, and of the time the processors were busy, which says
more on a machine that others use. Everything runs once before the first round, so that nothing is compiled in
one. Both prune in place; ours prunes in every round what it pruned in the one before, which is the same work,
and torch's puts each block's dense weights back when it is done.

Peak memory is the growth of the process's resident set above what it is after imports. Working memory is that
part of it which goes beyond the resident set between prunings, when there are the weights and the programs:
the calibration text's residual streams, and what pruning needs. Allocated is what of this was asked of malloc
and not given back, the most of one pruning that is not timed: the rest are pieces that malloc keeps. Beside
ours stands what one block takes by the compiled programs: the block, its statistics, the residual streams,
and what a program makes of them and needs besides, as if nothing were let go of before all are done.

With --device cuda all of it is done on a graphics card. Peak memory is then the most that each had of the
card at a time, and beside ours stand the weights and one block; there are no working and allocated memory.
Ours counts from the start of the process, what XLA takes to try out kernels as well.

    python scripts/bench/pruning.py --layers 1        one layer
    python scripts/bench/pruning.py                   the whole model
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from statistics import median

from turns import (
    JaxCard,
    Memory,
    Peer,
    Resident,
    TorchCard,
    device_name,
    most_allocated_mb,
    serve,
    started,
    use,
)

WIDTH, HEADS, VOCAB = 768, 12, 50257
METHODS = ("wanda", "sparsegpt")
BATCH = 2


def main() -> None:
    options = parse()
    use(options.device)
    if options.peer:
        serve(lambda: {"ragjax": ragjax_peer, "torch": torch_peer}[options.peer](options))
        return
    results = {}
    for method in options.methods:
        options.method = method
        results[method] = compare(options)
    shape = {"layers": options.layers, "width": WIDTH, "tokens": options.samples * options.length}
    found = {
        "geometry": shape,
        "rounds": options.rounds,
        "machine": device_name(options.device),
        "methods": results,
    }
    print(json.dumps(found) if options.json else table(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12, help="transformer blocks (default 12)")
    parser.add_argument("--samples", type=int, default=8, help="calibration sequences (default 8)")
    parser.add_argument("--length", type=int, default=1024, help="tokens in a sequence (default 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="prunings of each that are timed (default 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    parser.add_argument("--peer", choices=("ragjax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """One method: both in turns."""
    names = ["ragjax", "torch"]
    makers = {name: partial(Peer, name, "--method", options.method) for name in names}
    peers = started(makers, options.device)
    rounds = []
    for number in range(options.rounds):
        order = names if number % 2 == 0 else names[::-1]
        rounds.append({name: peers[name].ask_warm("prune") for name in order})
    closing = {name: peer.close() for name, peer in peers.items()}
    found: dict = {
        name: {
            "seconds": round(median(r[name]["seconds"] for r in rounds), 2),
            "cpu_seconds": round(median(r[name]["cpu_seconds"] for r in rounds), 2),
            "version": closing[name]["version"],
        }
        | {key: round(value, 1) for key, value in closing[name].items() if key.endswith("_mb")}
        for name in names
    }
    for key in ("seconds", "cpu_seconds"):
        ratios = [r["torch"][key] / r["ragjax"][key] for r in rounds]
        found[f"{key}_ratio"] = round(median(ratios), 2)
    return found


def table(found: dict) -> str:
    shape = found["geometry"]
    lines = [
        f"{shape['layers']} layers of width {shape['width']}, {shape['tokens']:,} tokens, "
        f"{found['rounds']} rounds, {found['machine']}",
        f"{'':<12}{'ragjax':>12}{'torch':>12}{'torch/ragjax':>15}",
    ]
    for method, each in found["methods"].items():
        ours, theirs = each["ragjax"], each["torch"]
        for name, key in ((method, "seconds"), ("  busy", "cpu_seconds")):
            times = f"{ours[key]:>10.2f} s{theirs[key]:>10.2f} s{each[f'{key}_ratio']:>15.2f}"
            lines.append(f"{name:<12}{times}")
        for key in sorted(ours.keys() & theirs.keys() & {"peak_mb", "working_mb", "allocated_mb"}):
            name = f"  {key.removesuffix('_mb')}"
            lines.append(f"{name:<12}{ours[key]:>9} MB{theirs[key]:>9} MB{theirs[key] / ours[key]:>15.2f}")
        lines.append(f"{'  weights':<12}{ours['weights_mb']:>9} MB")
        lines.append(f"{'  one block':<12}{ours['one_block_mb']:>9} MB")
    return "\n".join(lines)


def ragjax_peer(options: argparse.Namespace):
    import jax
    import numpy as np

    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig
    from ragjax.sparsity.calibrated.calibration import Calibration
    from ragjax.sparsity.calibrated.in_turn import spare_memory
    from ragjax.sparsity.calibrated.methods import How
    from ragjax.sparsity.calibrated.stream import prune_blocks

    spare_memory()  # as `ragjax prune` does
    memory = Resident() if options.device == "cpu" else JaxCard()
    config = DecoderConfig(
        vocab_size=VOCAB, positions=1024, width=WIDTH, layers=options.layers, heads=HEADS,
        mlp_width=4 * WIDTH,
    )  # fmt: skip
    params = random_weights(jax.eval_shape(lambda: init_params(config, seed=0)))
    text = np.random.default_rng(0).integers(0, VOCAB, (options.samples, options.length), np.int32)
    calibration = Calibration(text.reshape(-1, BATCH, options.length))
    names = ["attention/query", "attention/key", "attention/value", "attention/out", "mlp/up", "mlp/down"]
    half = {f"layers/{name}/kernel": np.full(options.layers, 0.5) for name in names}
    how = How("row" if options.method == "wanda" else "tensor")

    def prune():
        nonlocal params
        params = prune_blocks(config, params, calibration, half, method=options.method, how=how, donate=True)[
            0
        ]
        jax.block_until_ready(params)

    def tell() -> dict:
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
        block = one_block_mb(options, config, params, calibration, how)
        return {"version": jax.__version__, "weights_mb": weights, "one_block_mb": block}

    return served(prune, memory, tell)


def random_weights(shapes):
    """Made by numpy, as if they came from a file: a program that makes them would have memory of its own."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def leaf(path, shape):
        values = rng.standard_normal(shape.shape, np.float32)
        values *= 0.02
        values += path[-1].key == "scale"  # of norms
        return jax.numpy.array(values)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def one_block_mb(options: argparse.Namespace, config, params, calibration, how) -> float:
    """The block and its statistics, whole; the residual streams; what the dense block makes of a microbatch;
    and the most of what the programs take besides, each with what those before it made. Less is held where
    what is done with is let go of; more, where a program has buffers of which its compiler does not tell.
    """
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from ragjax.models.blockwise import layer_of, one_layer
    from ragjax.sparsity.calibrated.methods import METHODS, Matrices, part_of, prune_matrices
    from ragjax.sparsity.calibrated.residual_streams import embedded
    from ragjax.sparsity.calibrated.statistics import gather_and_run, nothing_yet, readers

    block, hidden = one_layer(params["layers"], 0), embedded(config, params, calibration)
    kernels = {name: leaf for name, leaf in flatten_dict(block, sep="/").items() if leaf.ndim == 2}
    groups = readers(config, block, list(kernels))
    sums = nothing_yet(groups, with_gram=METHODS[options.method].needs_gram)
    half = {name: jnp.float32(0.5) for name in kernels}
    given = Matrices(kernels, sums, half, jax.random.key(0))
    gathers = gather_and_run.lower(sums, block, layer_of(config, 0), hidden[0], config=config)
    parts = [part_of(given, group) for group in sums]
    prunes = [prune_matrices.lower(part, method=options.method, how=how) for part in parts]

    def held(*trees) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))

    def temporaries(program) -> int:
        return program.compile().memory_analysis().temp_size_in_bytes

    besides, made = [held(hidden[0]) + temporaries(gathers)], 0
    for part, program in zip(parts, prunes, strict=True):
        made += held(part.kernels)
        besides.append(made + temporaries(program))
    most = held(block, sums) + max(besides)
    return (most + held(hidden, hidden[0])) / 2**20


def served(prune, memory: Memory, tell):
    """What a peer serves: the pruning, after it was done once, and its memory at the end."""
    prune()
    memory.forget_peak()
    rest = memory.now_mb() if isinstance(memory, Resident) else 0.0

    def closing() -> dict:
        told = {"peak_mb": memory.peak_mb()}
        if isinstance(memory, Resident):
            told |= {"working_mb": told["peak_mb"] - rest, "allocated_mb": most_allocated_mb(prune)}
        return told | tell()

    return {"prune": prune}, closing


def torch_peer(options: argparse.Namespace):
    import torch
    import transformers

    memory = Resident() if options.device == "cpu" else TorchCard()
    torch.manual_seed(0)
    torch.set_default_device(options.device)
    config = transformers.GPT2Config(n_layer=options.layers, use_cache=False)
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").eval()
    text = torch.randint(0, VOCAB, (options.samples // BATCH, BATCH, options.length))

    @torch.no_grad()
    def prune():
        transformer = model.transformer
        places = torch.arange(options.length)[None]
        hidden = [transformer.wte(tokens) + transformer.wpe(places) for tokens in text]
        for number, block in enumerate(transformer.h):
            linears = [block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj]
            watchers = [Watcher(linear, options.method) for linear in linears]
            hooks = [
                linear.register_forward_hook(lambda _, given, out, w=w: w.add(given[0]))
                for linear, w in zip(linears, watchers, strict=True)
            ]
            for x in hidden:
                block(x)
            for hook in hooks:
                hook.remove()
            for linear, watcher in zip(linears, watchers, strict=True):
                # The dense weights stay, so that every round prunes the same model.
                watcher.dense = linear.weight.data
                linear.weight.data = watcher.pruned().T.contiguous()
            if number + 1 < options.layers:
                hidden = [first(block(x)) for x in hidden]
            for linear, watcher in zip(linears, watchers, strict=True):
                linear.weight.data = watcher.dense
        if options.device == "cuda":
            torch.cuda.synchronize()

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    class Watcher:
        """Statistics of one matrix's inputs, and its pruning to 50 %."""

        def __init__(self, linear, method):
            self.weight = linear.weight.data.T.clone()
            self.method, self.samples = method, 0
            size = self.weight.shape[1]
            self.statistics = torch.zeros(size) if method == "wanda" else torch.zeros(size, size)

        def add(self, given):
            x, new = given.reshape(-1, given.shape[-1]).t(), given.shape[0]
            self.statistics *= self.samples / (self.samples + new)
            self.samples += new
            if self.method == "wanda":
                self.statistics += torch.norm(x, p=2, dim=1) ** 2 / self.samples
            else:
                x = math.sqrt(2 / self.samples) * x
                self.statistics.addmm_(x, x.t())

        def pruned(self):
            return self.by_wanda() if self.method == "wanda" else self.by_sparsegpt()

        def by_wanda(self):
            metric = self.weight.abs() * torch.sqrt(self.statistics.reshape(1, -1))
            order = torch.sort(metric, dim=-1, stable=True)[1]
            self.weight.scatter_(1, order[:, : metric.shape[1] // 2], 0)
            return self.weight

        def by_sparsegpt(self, every=128, share=0.01):
            weight, hessian = self.weight, self.statistics
            dead = torch.diag(hessian) == 0
            hessian[dead, dead] = 1
            weight[:, dead] = 0
            hessian.diagonal().add_(share * torch.mean(torch.diag(hessian)))
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
            inverse = torch.linalg.cholesky(inverse, upper=True)
            for start in range(0, weight.shape[1], every):
                end = min(start + every, weight.shape[1])
                part = weight[:, start:end].clone()
                settled, errors = torch.zeros_like(part), torch.zeros_like(part)
                own = inverse[start:end, start:end]
                scores = part**2 / torch.diag(own).reshape(1, -1) ** 2
                mask = scores <= torch.sort(scores.flatten())[0][scores.numel() // 2]
                for i in range(end - start):
                    column, diagonal = part[:, i], own[i, i]
                    new = column.clone()
                    new[mask[:, i]] = 0
                    settled[:, i] = new
                    error = (column - new) / diagonal
                    part[:, i:] -= error.unsqueeze(1).matmul(own[i, i:].unsqueeze(0))
                    errors[:, i] = error
                weight[:, start:end] = settled
                weight[:, end:] -= errors.matmul(inverse[start:end, end:])
            return weight

    return served(prune, memory, lambda: {"version": torch.__version__})


if __name__ == "__main__":
    main()
