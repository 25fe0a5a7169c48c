"""Perplexity of a real model after one-shot pruning, by method, sparsity, pattern and budget.

Every cell is a process of its own: it loads MODEL, prunes it with the calibration text, measures perplexity
on each held-out text, and appends one line of JSON to --out. Cells that are there already are not made again,
so that the script may be stopped and started at any time. The tables are printed at the end, from all lines
there are.

    python scripts/fetch_smollm2.py
    python scripts/pruning_table.py --model ~/.cache/ragjax/smollm2 --out runs/smollm2-pruning.jsonl

Calibration text is the training side of `builtin:python`; held-out texts are its validation side and
whatever --text names, such as 'text:shakespeare/*.txt'. Seconds and peak memory are those of the pruning
itself; `cpu` are seconds of all cores together, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from result_lines import fill, read

METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "alps")
SETTINGS = ("50%", "60%", "70%", "2:4", "4:8")
WITH_OWL = ("wanda", "ria", "sparsegpt", "alps")


def main() -> None:
    options = parse()
    if options.cell:
        print(json.dumps(measured(options, json.loads(options.cell))))
        return
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"method": "dense", "setting": "0%", "budget": "uniform"}]
    cells += [{"method": m, "setting": s, "budget": "uniform"} for s in SETTINGS for m in METHODS]
    cells += [{"method": m, "setting": s, "budget": "owl"} for s in SETTINGS if "%" in s for m in WITH_OWL]
    chosen = [
        c
        for c in cells
        if c["method"] in (*options.methods, "dense") and c["setting"] in (*options.settings, "0%")
    ]
    missing = [c for c in chosen if c not in map(cell, read(out))]
    fill(missing, out)
    show(read(out))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="MODEL")
    parser.add_argument("--out", required=True, help="file of JSON lines")
    parser.add_argument("--text", default=[], action="append", help="URI of another held-out text")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences")
    parser.add_argument(
        "--sequence-length", type=int, default=512, help="tokens in a sequence, also in evaluation"
    )
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens scored of each held-out text")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(options: argparse.Namespace, wanted: dict) -> dict:
    """One cell: prunes, and measures what is left."""
    import ragjax
    from ragjax.config import OneShot
    from ragjax.data import open_corpus
    from ragjax.evaluation.perplexity import perplexity
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    model = ragjax.load(options.model)
    result = dict(wanted)
    if wanted["method"] != "dense":
        began, cpu = time.monotonic(), time.process_time()
        pruned = ragjax.prune(model, config_of(options, wanted, OneShot))
        model = pruned.model
        result["sparsity"] = pruned.report.sparsity.sparsity_prunable
        result["seconds"] = time.monotonic() - began
        result["cpu"] = time.process_time() - cpu
        result["peak_memory_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in ("builtin:python", *options.text):
        corpus = open_corpus(text, None, model.tokenizer)
        result[f"perplexity {text}"] = perplexity(
            model, corpus.tokens, sequence_length=options.sequence_length, stride=options.sequence_length,
            max_tokens=options.max_tokens, batch_size=4,
        ).perplexity  # fmt: skip
    return result


def config_of(options: argparse.Namespace, wanted: dict, one_shot: type):
    """The config of a cell."""
    shape = {
        "samples": options.samples,
        "sequence_length": options.sequence_length,
        "budget": wanted["budget"],
    }
    if ":" in wanted["setting"]:
        n, m = map(int, wanted["setting"].split(":"))
        return one_shot(method=wanted["method"], pattern="n_of_m", n=n, m=m, **shape)
    return one_shot(method=wanted["method"], sparsity=int(wanted["setting"][:-1]) / 100, **shape)


def cell(line: dict) -> dict:
    return {name: line[name] for name in ("method", "setting", "budget")}


def show(lines: list[dict]) -> None:
    """Markdown tables: one for each text, and one of what pruning took."""
    texts = [name for name in (lines or [{}])[0] if name.startswith("perplexity ")]
    ways = [(m, b) for m in METHODS for b in ("uniform", "owl")]
    by_cell = {(line["method"], line["setting"], line["budget"]): line for line in lines}
    for text in texts:
        dense = next((line[text] for line in lines if line["method"] == "dense"), float("nan"))
        print(f"\n{text}, dense {dense:.2f}\n\n| | {' | '.join(SETTINGS)} |\n|---|{'--:|' * len(SETTINGS)}")
        for method, budget in ways:
            row = [by_cell.get((method, setting, budget)) for setting in SETTINGS]
            if any(row):
                shown = " | ".join("" if line is None else f"{line[text]:,.1f}" for line in row)
                print(f"| {method}{' with OWL' if budget == 'owl' else ''} | {shown} |")
    print("\n| | seconds | of all cores | peak memory |\n|---|--:|--:|--:|")
    for method, budget in ways:
        line = by_cell.get((method, "50%", budget))
        if line:
            name = f"{method}{' with OWL' if budget == 'owl' else ''}, 50%"
            peak = line["peak_memory_bytes"] / 1e9
            print(f"| {name} | {line['seconds']:.0f} s | {line['cpu']:.0f} s | {peak:.2f} GB |")


if __name__ == "__main__":
    main()
