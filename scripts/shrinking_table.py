"""Perplexity of a real model after shrinking, by what shrinks, by importance, as cut and refit.

Every cell is a process of its own: it loads MODEL, shrinks it with the calibration text, measures perplexity
as `ragjax eval` does, and appends one line of JSON to --out. Cells that are there already are not made again,
so that the script may be stopped and started at any time. The tables are printed at the end, from all lines
there are.

    python scripts/fetch_smollm2.py
    python scripts/shrinking_table.py --model ~/.cache/ragjax/smollm2 --out runs/smollm2-shrinking.jsonl

Neurons, width and layers shrink until --params of the parameters are left; heads, of which there are few, to
--heads. Calibration text is the training side of `builtin:python`, perplexity is that of its validation side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from result_lines import fill, read

PARTS = ("neurons", "heads", "width", "layers")
IMPORTANCE = ("activation", "taylor", "magnitude", "random")
AGREE = ("taylor", "magnitude")
"""Criteria that are compared with `activation`, part by part."""
REFIT = ("neurons", "heads")
"""Parts of which something can be made up for."""


def main() -> None:
    options = parse()
    if options.cell:
        wanted = json.loads(options.cell)
        print(json.dumps({**wanted, **(agreement if wanted["part"] == "all" else measured)(options, wanted)}))
        return
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"part": "none", "importance": "none", "compensate": False}]
    cells += [
        {"part": part, "importance": importance, "compensate": compensate}
        for part in options.parts
        for importance in options.importance
        for compensate in ((False, True) if part in REFIT else (False,))
    ]
    cells.append({"part": "all", "importance": "agreement", "compensate": False})
    missing = [each for each in cells if each not in map(cell, read(out))]
    fill(missing, out)
    show(read(out))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="MODEL")
    parser.add_argument("--out", required=True, help="file of JSON lines")
    parser.add_argument("--params", type=float, default=0.8, help="share of the parameters that is left")
    parser.add_argument("--heads", type=int, default=6, help="query heads that are left")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences")
    parser.add_argument(
        "--sequence-length", type=int, default=256, help="tokens in a sequence, also in evaluation"
    )
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens scored")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--importance", nargs="+", default=IMPORTANCE, choices=IMPORTANCE)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(options: argparse.Namespace, wanted: dict) -> dict:
    """One cell: shrinks, and measures what is left."""
    import numpy as np

    import ragjax
    from ragjax.config import Shrink
    from ragjax.parallel.compile_cache import keep_compiled_programs
    from ragjax.sparsity.shrink import parameter_count, sizes_of

    keep_compiled_programs()
    model, result = ragjax.load(options.model), {}
    if wanted["part"] != "none":
        small = (
            {"heads": options.heads}
            if wanted["part"] == "heads"
            else {"params": options.params, "what": (wanted["part"],)}
        )
        config = Shrink(
            **small, importance=wanted["importance"], compensate=wanted["compensate"],
            samples=options.samples, sequence_length=options.sequence_length,
        )  # fmt: skip
        before = parameter_count(model.config)
        model, report = ragjax.shrink(model, config)
        result |= {"seconds": report.seconds, "share": parameter_count(model.config) / before}
        result["errors"] = {name: np.mean(each, 0).tolist() for name, each in report.errors.items()}
    result |= sizes_of(model.config)._asdict()
    result["perplexity"] = ragjax.evaluate(
        model, sequence_length=options.sequence_length, max_tokens=options.max_tokens
    ).perplexity
    return result


def agreement(options: argparse.Namespace, wanted: dict) -> dict:
    """Rank correlation (Spearman) of criteria with `activation`: of neurons and heads for each layer."""
    import numpy as np

    import ragjax
    from ragjax.data import Batches, open_corpus
    from ragjax.parallel.compile_cache import keep_compiled_programs
    from ragjax.sparsity.calibrated.calibration import Calibration
    from ragjax.sparsity.shrink import IMPORTANCE as CRITERIA
    from ragjax.sparsity.shrink import Subject

    keep_compiled_programs()
    model = ragjax.load(options.model)
    corpus = open_corpus("builtin:python", "train", model.tokenizer)
    text = Batches(
        corpus=corpus, batch_size=options.samples, sequence_length=options.sequence_length, seed=0
    ).batch(0)
    tokens = np.asarray(text.tokens)[:, None]
    subject = Subject(model.config, model.params, Calibration(tokens))
    found = {name: CRITERIA[name].measure(subject, lambda done, of: None) for name in ("activation", *AGREE)}

    def ranks(scores: np.ndarray) -> np.ndarray:
        return scores.reshape(-1, scores.shape[-1]).argsort(-1).argsort(-1)

    return {
        name: {
            part: [
                round(float(np.corrcoef(*pair)[0, 1]), 3)
                for pair in zip(ranks(scores), ranks(usual), strict=True)
            ]
            for part, scores, usual in zip(PARTS, importance, found["activation"], strict=True)
        }
        for name, importance in found.items()
        if name in AGREE
    }


def cell(line: dict) -> dict:
    return {name: line[name] for name in ("part", "importance", "compensate")}


def show(lines: list[dict]) -> None:
    """A Markdown table: what was taken out in columns, by what importance in rows."""
    by_cell = {tuple(cell(line).values()): line for line in lines}
    columns = [(part, refit) for part in PARTS for refit in ((False, True) if part in REFIT else (False,))]
    columns = [each for each in columns if any((line["part"], line["compensate"]) == each for line in lines)]
    dense = by_cell.get(("none", "none", False))
    if dense:
        print(f"\ndense: {dense['perplexity']:.2f}")
    for part in PARTS:
        line = next((line for line in lines if line["part"] == part), None)
        if line:
            sizes = ", ".join(f"{name} {line[name]}" for name in ("layers", "width", "heads", "mlp_width"))
            print(f"{part}: {sizes}; {line['share']:.3f} of the parameters")
    titles = [f"{part}{', refit' if refit else ''}" for part, refit in columns]
    print(f"\n| | {' | '.join(titles)} |\n|---|{'--:|' * len(columns)}")
    for importance in IMPORTANCE:
        row = [by_cell.get((part, importance, refit)) for part, refit in columns]
        if any(row):
            shown = " | ".join("" if line is None else f"{line['perplexity']:,.1f}" for line in row)
            print(f"| {importance} | {shown} |")
    for name, parts in (by_cell.get(("all", "agreement", False)) or {}).items():
        if isinstance(parts, dict):
            told = ", ".join(
                f"{part} {sum(each) / len(each):.2f} ({min(each):.2f} to {max(each):.2f})"
                for part, each in parts.items()
            )
            print(f"rank correlation of {name} with activation, mean over layers: {told}")


if __name__ == "__main__":
    main()
