"""Perplexity of sparse training by method, on the documentation of Python's own library.

Every run trains the same small GPT from the same random start on the same batches for the same number of
steps with AdamW; only the method differs. Kernels of the blocks are pruned, each matrix to the same sparsity;
embeddings, norms and biases stay dense. Perplexity is that of the held-out documents.

    dense    no pruning
    static   a random mask that never changes
    set      SET: a random mask; small weights are replaced by others drawn by chance
    rigl     RigL: the same, replaced by those of the largest gradient
    gradual  magnitude pruning on the cubic schedule
    ste      straight-through: dense weights behind the mask, chosen anew in every step
    sr_ste   the same, masked weights drawn to 0
    ac_dc    AC/DC: dense and sparse phases in turn
    movement movement pruning on the cubic schedule
    rewind   three rounds of pruning, the weights going back to what they were after a fortieth of the steps

One line of JSON a run goes to --out; runs that are there already are not made again, so that the script may
be stopped and started at any time. The table is printed at the end, from all lines there are.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev

from result_lines import read

WIDTH, HEADS, LENGTH, BATCH, VOCAB = 128, 4, 128, 8, 1024
RATE = 2e-3
"""The best of 1e-3, 2e-3 and 4e-3 for the dense model."""
TABLE = ("dense", "static", "set", "rigl", "gradual", "ste", "ac_dc")


def main() -> None:
    options = parse()
    out = Path(options.out)
    cells = [
        {"method": method, "target": target, "seed": seed, "steps": options.steps, "layers": options.layers}
        for seed in options.seeds
        for target in options.sparsity
        for method in options.methods
    ]
    # A dense run has one sparsity.
    cells = [c | {"target": 0.0} if c["method"] == "dense" else c for c in cells]
    missing = [c for i, c in enumerate(cells) if c not in map(cell, read(out)) and c not in cells[:i]]
    if missing:
        run = trainer(options.layers, options.steps)
        out.parent.mkdir(parents=True, exist_ok=True)
        for number, wanted in enumerate(missing, 1):
            result = wanted | run(wanted["method"], wanted["target"], wanted["seed"])
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            if not options.json:
                print(f"{number}/{len(missing)} {json.dumps(result)}", flush=True)
    rows = summary([line for line in read(out) if cell(line) in cells])
    if options.json:
        print(json.dumps(rows))
    else:
        show(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="sparse_training.jsonl", help="file of results, one line a run")
    parser.add_argument("--steps", type=int, default=600, help="steps of each run (default 600)")
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks (default 2)")
    parser.add_argument("--methods", nargs="+", default=list(TABLE), help=f"default: {' '.join(TABLE)}")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9], help="default 0.8 0.9")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--json", action="store_true", help="print the table as one line of JSON")
    return parser.parse_args()


def cell(line: dict) -> dict:
    """What names a run."""
    return {name: line[name] for name in ("method", "target", "seed", "steps", "layers")}


def settings(method: str, target: float, steps: int):
    """The sparsity of a row: updates often enough for so short a training, and a quarter to settle."""
    from ragjax.config import Sparsity

    stop, often = steps * 3 // 4, max(steps // 40, 1)
    return {
        "dense": lambda: Sparsity(),
        "static": lambda: Sparsity(target, "set", fraction=0.0, stop=stop),
        "set": lambda: Sparsity(target, "set", every=often, stop=stop),
        "rigl": lambda: Sparsity(target, "rigl", every=often, stop=stop),
        "gradual": lambda: Sparsity(target, start=steps // 10, every=often, stop=stop),
        "ste": lambda: Sparsity(target, "ste", schedule="periodic", every=1, stop=stop),
        "sr_ste": lambda: Sparsity(target, "sr_ste", schedule="periodic", every=1, stop=stop),
        "ac_dc": lambda: Sparsity(target, "ac_dc", start=steps // 10, every=steps // 12, stop=stop),
        "movement": lambda: Sparsity(target, "movement", start=steps // 10, every=often, stop=stop),
        "rewind": lambda: Sparsity(
            target, "rewind", schedule="geometric", rewind_to=steps // 40, start=steps // 40,
            every=steps // 4, stop=stop,
        ),
    }[method]()  # fmt: skip


def trainer(layers: int, steps: int):
    """A function from method, sparsity and seed to the figures of one run."""
    import jax

    from ragjax.config import Distill, Mesh, Train
    from ragjax.data.batches import Batches
    from ragjax.data.corpus import open_corpora
    from ragjax.data.sources import documents
    from ragjax.data.tokenizer import train_tokenizer
    from ragjax.distillation.objective import Objective
    from ragjax.evaluation.perplexity import perplexity
    from ragjax.model import Model
    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig
    from ragjax.parallel.mesh import make_mesh
    from ragjax.sparsity import sparsify, sparsity_figures
    from ragjax.training.feed import batch_on_mesh
    from ragjax.training.optimizer import make_optimizer
    from ragjax.training.state import init_state
    from ragjax.training.step import make_step

    tokenizer = train_tokenizer(documents("builtin:python", "train"), VOCAB)
    texts, held_out = open_corpora("builtin:python", None, tokenizer, cache=None)
    config = DecoderConfig(
        vocab_size=len(tokenizer), positions=LENGTH, width=WIDTH, layers=layers, heads=HEADS,
        mlp_width=4 * WIDTH,
    )  # fmt: skip
    train = Train(steps=steps, batch_size=BATCH, learning_rate=RATE, warmup=min(50, steps // 2))
    objective = Objective(config, (), Distill(forward_kl=0.0, cross_entropy=1.0))
    mesh = make_mesh(Mesh(), jax.devices()[:1])

    def run(method: str, target: float, seed: int) -> dict:
        begin = time.perf_counter()
        sparsity = settings(method, target, steps)
        optimizer = sparsify(make_optimizer(train), sparsity, total_steps=steps, seed=seed)
        batches = Batches(corpus=texts, batch_size=BATCH, sequence_length=LENGTH, seed=seed)
        with jax.set_mesh(mesh):
            step = make_step(objective, optimizer, clip=train.clip, seed=seed)
            state = init_state(init_params(config, seed), optimizer, mesh)
            for i in range(steps):
                state, _ = step(state, (), batch_on_mesh(batches, i, mesh))
            params = jax.device_get(state.params)
        told = perplexity(
            Model(config, params, tokenizer), held_out.tokens, sequence_length=LENGTH, stride=LENGTH // 2,
            batch_size=32, max_tokens=40_000,
        )  # fmt: skip
        return {
            "perplexity": round(told.perplexity, 3),
            "zeros": round(sparsity_figures(params, config).sparsity_prunable, 5),
            "seconds": round(time.perf_counter() - begin, 1),
        }

    return run


def summary(lines: list[dict]) -> list[dict]:
    """Mean and spread over the seeds of each method at each sparsity."""
    rows: dict[tuple[str, float], list[float]] = {}
    for line in lines:
        rows.setdefault((line["method"], line["target"]), []).append(line["perplexity"])
    return [
        {
            "method": method, "sparsity": target, "seeds": len(values), "perplexity": round(mean(values), 2),
            "standard_deviation": round(stdev(values), 2) if len(values) > 1 else None,
        }
        for (method, target), values in rows.items()
    ]  # fmt: skip


def show(rows: list[dict]) -> None:
    print("| method | sparsity | seeds | perplexity | standard deviation |\n|---|--:|--:|--:|--:|")
    for row in sorted(rows, key=lambda row: (row["sparsity"], row["perplexity"])):
        print("| " + " | ".join("-" if value is None else str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
