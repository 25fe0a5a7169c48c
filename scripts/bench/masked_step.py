"""What masks cost: a train step of a sparse model beside the same step of the dense one.

The step is forward, backward, clipping to global norm 1 and AdamW of a GPT-2 from a random start on random
tokens: `ragjax.training.make_step`, once with the plain optimizer and once under `sparsify`, whose masks are
updated in every second step. Each runs in a process of its own and sleeps while the other works; a round is
a dense step, one that updates masks and one that does not, in alternating order, and a ratio is the median
over rounds of the quotient within a round: of the time that passed, and of the time the processors were busy,
which says more on a machine that others use. Peak memory is the growth of the process's resident set above
what it is after imports, compilation apart: parameters, moments, gradients, activations and masks.

Aims: at most 1.02 times the dense step between updates of the masks, at most 1.25 times at one.
"""

from __future__ import annotations

import argparse
import json
from statistics import median

from turns import Peer, forget_peak, machine, resident_mb, serve

GPT2 = {"vocab_size": 50257, "width": 768, "layers": 12, "heads": 12, "batch": 2, "length": 512}
SMALL = {"vocab_size": 2048, "width": 256, "layers": 4, "heads": 4, "batch": 4, "length": 128}
METHODS = ("gradual", "set", "rigl", "ac_dc", "rewind", "ste", "sr_ste", "movement")


def main() -> None:
    options = parse()
    if options.peer:
        serve(lambda: peer(options))
    else:
        result = compare(options)
        print(json.dumps(result, indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="4 layers of width 256 instead of GPT-2 124M")
    parser.add_argument("--batch", type=int, help="sequences in a step (default 2; small: 4)")
    parser.add_argument("--length", type=int, help="tokens in a sequence (default 512; small: 128)")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each that are timed (default 7)")
    parser.add_argument("--method", choices=METHODS, default="gradual", help="sparsity.method")
    parser.add_argument("--pattern", default="tensor", help="sparsity.pattern (default tensor)")
    parser.add_argument("--score", default="magnitude", help="sparsity.score (default magnitude)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="sparsity.target (default 0.5)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    parser.add_argument("--peer", choices=("dense", "masked"), help=argparse.SUPPRESS)
    return parser.parse_args()


def shape(options: argparse.Namespace) -> dict:
    given = {"batch": options.batch, "length": options.length}
    chosen = SMALL if options.small else GPT2
    return chosen | {name: value for name, value in given.items() if value}


def compare(options: argparse.Namespace) -> dict:
    """Both steps in turns."""
    dense, masked = Peer("dense"), Peer("masked")
    rounds: list[dict] = []
    for number in range(options.rounds):
        # The masks of even steps are updated; both peers have taken two steps before the first round.
        orders = (("dense", "update", "between"), ("update", "between", "dense"))
        steps = {name: (dense if name == "dense" else masked).ask("step") for name in orders[number % 2]}
        rounds.append(steps)
    closing = {"dense": dense.close(), "masked": masked.close()}

    def ratio(name: str, what: str) -> float:
        return round(median(r[name][what] / r["dense"][what] for r in rounds), 3)

    return {
        "geometry": shape(options), "method": options.method, "pattern": options.pattern,
        "score": options.score, "sparsity": options.sparsity, "rounds": options.rounds,
        "machine": machine(), "versions": closing["dense"]["versions"],
        "seconds": {n: [round(r[n]["seconds"], 3) for r in rounds] for n in ("dense", "between", "update")},
        "between": {what: ratio("between", what) for what in ("seconds", "cpu_seconds")},
        "update": {what: ratio("update", what) for what in ("seconds", "cpu_seconds")},
        "peak_memory_mb": {name: round(told["peak_mb"]) for name, told in closing.items()},
        "memory_ratio": round(closing["masked"]["peak_mb"] / closing["dense"]["peak_mb"], 3),
        "state_mb": {name: round(told["state_mb"], 1) for name, told in closing.items()},
    }  # fmt: skip


def peer(options: argparse.Namespace):
    """A compiled step, taken twice, and what to tell at the end."""
    import jax
    import numpy as np

    from ragjax.config import Distill, Mesh, Sparsity, Train
    from ragjax.data.batches import Batch
    from ragjax.distillation.objective import Objective
    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig
    from ragjax.parallel.mesh import make_mesh
    from ragjax.sparsity import sparsify
    from ragjax.training.optimizer import make_optimizer
    from ragjax.training.state import init_state
    from ragjax.training.step import make_step

    base = resident_mb("VmRSS")
    sizes = shape(options)
    config = DecoderConfig(
        vocab_size=sizes["vocab_size"], positions=max(1024, sizes["length"]), width=sizes["width"],
        layers=sizes["layers"], heads=sizes["heads"], mlp_width=4 * sizes["width"],
    )  # fmt: skip
    optimizer = make_optimizer(Train())
    if options.peer == "masked":
        sparsity = Sparsity(
            options.sparsity,
            options.method,
            pattern=options.pattern,
            score=options.score,
            every=2,
            stop=10_000,
        )  # fmt: skip
        optimizer = sparsify(optimizer, sparsity, total_steps=20_000, seed=0)
    objective = Objective(config, (), Distill(forward_kl=0.0, cross_entropy=1.0))
    rng = np.random.default_rng(0)
    text = rng.integers(0, config.vocab_size, (1, sizes["batch"], sizes["length"] + 1), np.int32)
    batch = Batch(text[..., :-1], text[..., 1:], np.ones(text[..., 1:].shape, np.float32))
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    state = init_state(init_params(config, seed=0), optimizer, mesh)
    with jax.set_mesh(mesh):
        step = make_step(objective, optimizer, clip=1.0).lower(state, (), batch).compile()

    def once() -> None:
        nonlocal state
        state, metrics = step(state, (), batch)
        jax.block_until_ready((state, metrics))

    once()
    forget_peak()
    once()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    return {"step": once}, lambda: {
        "peak_mb": resident_mb("VmHWM") - base, "state_mb": held, "versions": {"jax": jax.__version__},
    }  # fmt: skip


if __name__ == "__main__":
    main()
