"""What it costs to learn from what the student writes: writing a batch, beside the step that learns from one.

A student of half the layers of GPT-2 124M (or --small: 2 layers of width 128), both from a random start,
goes on from prompts of random tokens to the end of each sequence, alone and with its teacher, whose share in
every token is 0.2. Nothing ends a text, so that every sequence is as long as it may be. The step is forward,
reverse KL, backward, clipping and AdamW, with the teacher in it. All are compiled programs of one process and
take turns; a ratio is the median over rounds of the quotient within a round.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from turns import machine

GPT2 = {"vocab_size": 50257, "width": 768, "heads": 12, "layers": (6, 12), "batch": 4, "length": 128}
SMALL = {"vocab_size": 1024, "width": 128, "heads": 4, "layers": (2, 4), "batch": 8, "length": 128}


def main() -> None:
    options = parse()
    result = compare(options)
    print(json.dumps(result, indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the quickstart's shapes instead of GPT-2's")
    parser.add_argument("--batch", type=int, help="sequences in a batch (default 4; small: 8)")
    parser.add_argument("--length", type=int, help="tokens in a sequence (default 128)")
    parser.add_argument(
        "--prompt", type=int, default=32, help="tokens of each that are its prompt (default 32)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="turns that are timed (default 5)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """All programs in turns."""
    import jax
    import numpy as np

    from ragjax.config import Distill, Mesh, OnPolicy, Train
    from ragjax.data.batches import Batch
    from ragjax.distillation.objective import Objective
    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig
    from ragjax.parallel.hosts import global_array
    from ragjax.parallel.mesh import make_mesh
    from ragjax.parallel.rules import place
    from ragjax.training.on_policy import OwnWriting
    from ragjax.training.optimizer import make_optimizer
    from ragjax.training.state import init_state
    from ragjax.training.step import make_step

    given = {"batch": options.batch, "length": options.length}
    sizes = (SMALL if options.small else GPT2) | {name: value for name, value in given.items() if value}
    student, teacher = (
        DecoderConfig(
            vocab_size=sizes["vocab_size"], positions=max(1024, sizes["length"]), width=sizes["width"],
            layers=layers, heads=sizes["heads"], mlp_width=4 * sizes["width"],
        )
        for layers in sizes["layers"]
    )  # fmt: skip
    train = Train(batch_size=sizes["batch"], dtype=options.dtype)
    optimizer = make_optimizer(train)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    rng = np.random.default_rng(0)
    shape = (1, sizes["batch"], sizes["length"])
    text = rng.integers(0, student.vocab_size, (*shape[:2], shape[2] + 1), np.int32)

    def on_mesh(array):
        return global_array(shape, lambda rows: array[:, rows], mesh, axis=1)

    with jax.set_mesh(mesh):
        taught = (place(init_params(teacher, seed=1), mesh),)
        state = init_state(init_params(student, seed=0), optimizer, mesh)
        batch = Batch(*map(on_mesh, (text[..., :-1], text[..., 1:], np.ones(shape, np.float32))))
        objective = Objective(student, (teacher,), Distill(reverse_kl=0.5), dtype=options.dtype)
        step = make_step(objective, optimizer, clip=1.0)
        writers = {
            name: OwnWriting(
                OnPolicy(share=1.0, prompt_tokens=options.prompt, teacher_share=share), student=student,
                teacher=teacher, train=train, sequence_length=sizes["length"], ends=(), seed=0, mesh=mesh,
                longest_prompt=options.prompt,
            )
            for name, share in (("alone", 0.0), ("with teacher", 0.2))
        }  # fmt: skip
        memories = {name: writer.memory() for name, writer in writers.items()}

        def work(name: str) -> float:
            nonlocal state
            begin = time.perf_counter()
            if name == "step":
                _, plain = writers["alone"].batch("text", state, taught, batch)
                state, metrics = step(state, taught, plain)
                jax.block_until_ready((state, metrics))
            else:
                found, made = writers[name].batch(
                    "written", state._replace(memory=memories[name]), taught, batch
                )
                memories[name] = found.memory
                jax.block_until_ready(made)
            return time.perf_counter() - begin

        names = ["step", *writers]
        for name in names:
            work(name)
        rounds = []
        for number in range(options.rounds):
            rounds.append({name: work(name) for name in (names if number % 2 else names[::-1])})

    new = sizes["batch"] * (sizes["length"] + 1 - options.prompt)
    return {
        "geometry": sizes | {"prompt": options.prompt, "dtype": options.dtype, "written": new},
        "rounds": options.rounds, "machine": machine(), "jax": jax.__version__,
        "seconds": {name: [round(r[name], 3) for r in rounds] for name in names},
        "written_tokens_per_second": {
            name: round(new / median(r[name] for r in rounds), 1) for name in writers
        },
        "step_tokens_per_second": round(np.prod(shape) / median(r["step"] for r in rounds), 1),
        "on_policy_step": {
            name: round(median((r[name] + r["step"]) / r["step"] for r in rounds), 2) for name in writers
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
