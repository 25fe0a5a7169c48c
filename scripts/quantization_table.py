"""Perplexity, bytes and seconds of a real model in few bits, by scheme and method.

Every cell is a process of its own: it loads MODEL, quantizes it with the calibration text, saves it to see
how many bytes that takes, measures perplexity on each held-out text, and appends one line of JSON to --out.
Cells that are there already are not made again, so that the script may be stopped and started at any time.
The table is printed at the end, from all lines there are.

    python scripts/fetch_smollm2.py
    python scripts/quantization_table.py --model ~/.cache/ragjax/smollm2 --out runs/smollm2-quantization.jsonl

Calibration text is the training side of `builtin:python`; held-out texts are its validation side and
whatever --text names, such as 'text:shakespeare/*.txt'. int4 has a scale for each 32 inputs, int4/64 for each
64. Seconds are those of quantizing alone; `cpu` are seconds of all cores together, which other work on the
machine changes little.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from result_lines import fill, read

CELLS = (
    ("fp32", "none"),
    ("bf16", "none"),
    ("int8", "rtn"),
    ("int8", "gptq"),
    ("int8", "awq"),
    ("int8_activations", "rtn"),
    ("int8_activations", "smoothquant"),
    ("int4", "rtn"),
    ("int4", "gptq"),
    ("int4", "gptq --order"),
    ("int4", "awq"),
    ("int4/64", "rtn"),
    ("int4/64", "gptq"),
    ("int4/64", "gptq --order"),
    ("int4/64", "awq"),
)
"""Schemes, with their group where it is another than theirs, and methods."""


def main() -> None:
    options = parse()
    if options.cell:
        print(json.dumps(measured(options, *json.loads(options.cell))))
        return
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = [
        (scheme, method)
        for scheme, method in CELLS
        if scheme in options.schemes and method.split()[0] in (*options.methods, "none")
    ]
    there = [(line["scheme"], line["method"]) for line in read(out)]
    missing = [wanted for wanted in chosen if wanted not in there]
    fill(missing, out)
    show(read(out))


def parse() -> argparse.Namespace:
    schemes = list(dict.fromkeys(scheme for scheme, _ in CELLS))
    methods = list(dict.fromkeys(method.split()[0] for _, method in CELLS if method != "none"))
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
    parser.add_argument("--schemes", nargs="+", default=schemes, choices=schemes)
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(options: argparse.Namespace, scheme: str, method: str) -> dict:
    """One cell: quantizes, and measures what is left."""
    import jax
    import jax.numpy as jnp

    import ragjax
    from ragjax.config import Quantize
    from ragjax.data import open_corpus
    from ragjax.evaluation.perplexity import perplexity
    from ragjax.interchange.size import stored_bytes
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    model = ragjax.load(options.model)
    result: dict = {"scheme": scheme, "method": method}
    made = None
    if method != "none":
        name, _, group = scheme.partition("/")
        config = Quantize(
            scheme=name, method=method.split()[0], order="--order" in method,
            group=int(group) if group else None, samples=options.samples,
            sequence_length=options.sequence_length,
        )  # fmt: skip
        began, cpu = time.monotonic(), time.process_time()
        made = ragjax.quantize(model, config)
        model, result["bits"] = made.model, made.report.bits
        result["seconds"] = time.monotonic() - began
        result["cpu"] = time.process_time() - cpu
    with tempfile.TemporaryDirectory() as folder:
        dtype = "bfloat16" if scheme == "bf16" else "float32"
        ragjax.save(model, Path(folder) / "model", dtype=dtype)
        result["stored_bytes"] = stored_bytes(Path(folder) / "model")
    if scheme == "bf16":
        # What is read back of it.
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), model.params)
        model = dataclasses.replace(model, params=rounded)
    if not (made and made.report.scheme.activations):
        # The floats that the integers stand for compute the same, and on a CPU sooner.
        model = model.in_floats()
    for text in ("builtin:python", *options.text):
        corpus = open_corpus(text, None, model.tokenizer)
        result[f"perplexity {text}"] = perplexity(
            model, corpus.tokens, sequence_length=options.sequence_length, stride=options.sequence_length,
            max_tokens=options.max_tokens, batch_size=4,
        ).perplexity  # fmt: skip
    return result


def show(lines: list[dict]) -> None:
    """A Markdown table."""
    texts = [name for name in (lines or [{}])[0] if name.startswith("perplexity ")]
    titles = ["", *texts, "MB stored", "seconds", "of all cores"]
    print(f"\n| {' | '.join(titles)} |\n|---|{'--:|' * (len(titles) - 1)}")
    by_cell = {(line["scheme"], line["method"]): line for line in lines}
    for scheme, method in CELLS:
        line = by_cell.get((scheme, method))
        if line:
            name = scheme if method == "none" else f"{scheme}, {method}"
            cells = [f"{line[text]:,.2f}" for text in texts] + [f"{line['stored_bytes'] / 1e6:,.1f}"]
            cells += [f"{line[part]:.0f} s" if part in line else "" for part in ("seconds", "cpu")]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
