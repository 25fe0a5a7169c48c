"""Perplexity of a distilled student by what it learns from, on the documentation of Python's own library.

One teacher of four layers is trained from scratch; every student starts from two of its layers
and reads the same batches for the same number of steps. Only the losses differ. Perplexity is that of
held-out documents. It takes minutes on a graphics card, and some forty seconds a run on two CPU cores.

    control              the text alone
    forward_kl           KL(teacher || student); all below it have a quarter of the text's loss besides
    reverse_kl           KL(student || teacher)
    jensen_shannon       both against their mixture
    skewed_forward_kl    DistiLLM's, forward
    skewed_reverse_kl    DistiLLM's, reverse
    total_variation      half the sum of absolute differences
    hidden               forward_kl, and the cosine between hidden states
    relations            forward_kl, and MiniLMv2's relations of queries, keys and values
    cached               forward_kl to the 64 likeliest tokens and the rest, kept on disk beforehand
    on_policy            GKD: forward_kl, half of the steps on what the student writes itself

One line of JSON a run goes to --out; runs that are there already are not made again, so that the script may
be stopped and started at any time. The table is printed at the end, from all lines there are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import mean, stdev

from result_lines import read

TABLE = (
    "control", "forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl",
    "total_variation", "hidden", "relations", "cached", "on_policy",
)  # fmt: skip
TEXT = 0.25
"""Weight of the text's own loss beside a teacher's."""


def main() -> None:
    options = parse()
    out, work = Path(options.out), Path(options.workdir)
    cells = [
        {"losses": losses, "seed": seed, "steps": options.steps}
        for seed in options.seeds
        for losses in options.losses
    ]
    missing = [c for c in cells if c not in map(cell, read(out))]
    if missing:
        teacher = trained_teacher(work, options.teacher_steps)
        out.parent.mkdir(parents=True, exist_ok=True)
        for number, wanted in enumerate(missing, 1):
            result = wanted | run(wanted, teacher, work)
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            if not options.json:
                print(f"{number}/{len(missing)} {json.dumps(result)}", flush=True)
    rows = summary([line for line in read(out) if cell(line) in cells])
    print(json.dumps(rows) if options.json else table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="distillation.jsonl", help="file of results, one line a run")
    parser.add_argument("--workdir", default="runs/distillation_table", help="teacher, caches, runs")
    parser.add_argument("--steps", type=int, default=300, help="steps of each student (default 300)")
    parser.add_argument("--teacher-steps", type=int, default=2000, help="of the teacher (default 2000)")
    parser.add_argument("--losses", nargs="+", choices=TABLE, default=list(TABLE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--json", action="store_true", help="print the table as one line of JSON")
    return parser.parse_args()


def cell(line: dict) -> dict:
    """What names a run."""
    return {name: line[name] for name in ("losses", "seed", "steps")}


def trained_teacher(work: Path, steps: int) -> Path:
    """The teacher's folder; trained where it is not there yet."""
    from ragjax.config import Architecture, Data, Pretrain, Train
    from ragjax.recipe import pretrain

    config = Pretrain(
        architecture=Architecture(layers=4, width=128, heads=4, positions=128),
        data=Data(train="builtin:python", sequence_length=128, vocab_size=1024),
        train=Train(steps=steps, batch_size=8, learning_rate=4e-3, warmup=50, log_every=200),
    )
    model = work / "teacher" / "model"
    if not model.exists():
        pretrain(config, work / "teacher")
    return model


def run(wanted: dict, teacher: Path, work: Path) -> dict:
    """Trains and measures one student."""
    import dataclasses

    from rich.console import Console

    from ragjax.caching import cache_teacher
    from ragjax.config import Compress, Data, Evaluate, OnPolicy, Student, Teacher, Train
    from ragjax.recipe import compress

    began, losses = time.perf_counter(), wanted["losses"]
    quiet = Console(quiet=True)
    config = Compress(
        seed=wanted["seed"],
        teacher=Teacher(model=str(teacher)),
        student=Student(layers=2, control=False),
        data=Data(train="builtin:python", sequence_length=128, fixed_cuts=True),
        train=Train(
            steps=wanted["steps"], batch_size=8, learning_rate=2e-3, warmup=20, evaluate_every=0,
            log_every=100, checkpoint_every=1000,
        ),
        distill=weights(losses),
        evaluate=Evaluate(max_tokens=40_000, speed_rounds=1, sample_tokens=1),
    )  # fmt: skip
    if losses == "on_policy":
        config = dataclasses.replace(config, on_policy=OnPolicy(share=0.5, prompt_tokens=32))
    if losses == "cached":
        cache = work / "caches" / f"{wanted['seed']}-{wanted['steps']}"
        cache_teacher(config, cache, top_k=64, console=quiet)
        config = dataclasses.replace(config, teacher=Teacher(model=str(teacher), cache=str(cache)))
    folder = work / "-".join(map(str, wanted.values()))
    figures = compress(config, folder, console=quiet)
    shutil.rmtree(folder)
    return {
        "perplexity": round(figures["student"].perplexity, 3),
        "teacher": round(figures["teacher"].perplexity, 3),
        "seconds": round(time.perf_counter() - began, 1),
    }


def weights(losses: str):
    """What a student of this row learns from."""
    from ragjax.config import Distill

    if losses == "control":
        return Distill(forward_kl=0.0, cross_entropy=1.0)
    if losses == "hidden":
        return Distill(forward_kl=1.0, cross_entropy=TEXT, hidden_cosine=1.0)
    if losses == "relations":
        return Distill(forward_kl=1.0, cross_entropy=TEXT, relations=0.1)
    if losses in ("cached", "on_policy"):
        return Distill(forward_kl=1.0, cross_entropy=TEXT)
    return Distill(**({"forward_kl": 0.0, "cross_entropy": TEXT} | {losses: 1.0}))


def summary(lines: list[dict]) -> list[dict]:
    """Mean and spread over the seeds of each row, and of its quotient by the control of the same seed."""
    by_row: dict[str, dict[int, float]] = {}
    for line in lines:
        by_row.setdefault(line["losses"], {})[line["seed"]] = line["perplexity"]
    control = by_row.get("control", {})
    rows = []
    for losses, values in by_row.items():
        quotients = [value / control[seed] for seed, value in values.items() if seed in control]
        rows.append(
            {
                "losses": losses,
                "seeds": len(values),
                "perplexity": round(mean(values.values()), 2),
                "standard_deviation": round(stdev(values.values()), 2) if len(values) > 1 else None,
                "of_control": round(mean(quotients), 3) if quotients else None,
                "its_deviation": round(stdev(quotients), 3) if len(quotients) > 1 else None,
            }
        )
    return sorted(rows, key=lambda row: row["perplexity"])


def table(rows: list[dict]) -> str:
    lines = ["| learns from | seeds | perplexity | of control's |", "|---|--:|--:|--:|"]
    for row in rows:
        values = [f"{row['perplexity']:.2f}", f"{row['of_control'] or float('nan'):.3f}"]
        spreads = [row["standard_deviation"], row["its_deviation"]]
        shown = [v if s is None else f"{v} ± {s}" for v, s in zip(values, spreads, strict=True)]
        lines.append(f"| `{row['losses']}` | {row['seeds']} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
