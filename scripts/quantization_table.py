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

Speed is a matter of the scheme and of what runs it, not of the method. `--speed` measures it by itself, on a
machine that does nothing else: all schemes, rounded to the nearest, take turns in one process, in JAX and as
the graphs that onnxruntime runs of them, whose tables of tokens have 8 bits. Its lines go to the same file,
where the last ones count, and into the table:

    python scripts/quantization_table.py --model ~/.cache/ragjax/smollm2 --out FILE --speed
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
GRAPHS = {
    "fp32": ("float32",), "int8": ("int8", "int8_128"), "int8_activations": ("int8",), "int4": ("int4",),
    "int4/64": ("int4",),
}  # fmt: skip
"""Types of `ragjax export --format onnx` that hold a scheme's integers, or what comes nearest to them."""


def main() -> None:
    options = parse()
    if options.cell:
        print(json.dumps(measured(options, *json.loads(options.cell))))
        return
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if options.speed:
        lines = speeds(options)
        with out.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        show(read(out))
        return
    chosen = [
        (scheme, method)
        for scheme, method in CELLS
        if scheme in options.schemes and method.split()[0] in (*options.methods, "none")
    ]
    there = [(line["scheme"], line["method"]) for line in read(out) if "method" in line]
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
    parser.add_argument(
        "--speed", action="store_true", help="measure decoded tokens a second, and nothing else"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each that are timed (default 5)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens written in a turn (default 64)")
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
        config = Quantize(
            **scheme_fields(scheme), method=method.split()[0], order="--order" in method,
            samples=options.samples, sequence_length=options.sequence_length,
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


def scheme_fields(scheme: str) -> dict:
    """Fields of `Quantize` for a scheme, with its group if it has one."""
    name, _, group = scheme.partition("/")
    return {"scheme": name, "group": int(group) if group else None}


def speeds(options: argparse.Namespace) -> list[dict]:
    """Decoded tokens a second at batch 1 of each scheme in each engine, in turns."""
    import jax.numpy as jnp

    import ragjax
    from ragjax.benchmark import bench
    from ragjax.config import Bench, Quantize
    from ragjax.interchange.onnx import export_onnx, load_onnx
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    whole, models = ragjax.load(options.model), {}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in options.schemes:
            model = whole
            if scheme == "bf16":
                model = ragjax.load(options.model, dtype=jnp.bfloat16)
            elif scheme != "fp32":
                model = ragjax.quantize(whole, Quantize(**scheme_fields(scheme))).model
            models[scheme, "jax", ""] = model
            for dtype in GRAPHS.get(scheme, ()):
                path = Path(folder) / f"{scheme.replace('/', '-')}-{dtype}"
                models[scheme, "onnx", dtype] = load_onnx(export_onnx(model, path, dtype=dtype))
        told = bench(
            [(" ".join(key), model) for key, model in models.items()],
            Bench(batch=(1,), prompt_tokens=16, new_tokens=options.new_tokens, rounds=options.rounds),
            progress=lambda line: print(line, flush=True),
        )
    return [
        {
            "scheme": scheme, "engine": engine, "dtype": dtype, "machine": told.machine, "date": told.date,
            "rounds": options.rounds, "new_tokens": options.new_tokens,
            "bandwidth_bytes_per_second": told.bandwidth_bytes_per_second,
            **{name: getattr(one.batch[1], name) for name in SPEEDS},
        }
        for (scheme, engine, dtype), one in zip(models, told.models, strict=True)
    ]  # fmt: skip


SPEEDS = ("decode_tokens_per_second", "decode_ratio", "bytes_per_token", "share_of_bandwidth")
"""Figures of `ragjax bench` that are kept; ratios are to the first scheme in JAX."""


def written(lines: list[dict], scheme: str, engine: str) -> str:
    """Tokens a second of a scheme in an engine, of each type it has there; the last measurement counts."""
    found = {
        line["dtype"]: line["decode_tokens_per_second"]
        for line in lines
        if (line["scheme"], line.get("engine")) == (scheme, engine)
    }
    parts = [f"{speed:,.1f}{f' ({dtype})' if len(found) > 1 else ''}" for dtype, speed in found.items()]
    return ", ".join(parts)


def show(lines: list[dict]) -> None:
    """A Markdown table."""
    cells = [line for line in lines if "method" in line]
    texts = [name for name in (cells or [{}])[0] if name.startswith("perplexity ")]
    titles = ["", *texts, "MB stored", "tokens/s, JAX", "tokens/s, ONNX", "seconds", "of all cores"]
    print(f"\n| {' | '.join(titles)} |\n|---|{'--:|' * (len(titles) - 1)}")
    by_cell = {(line["scheme"], line["method"]): line for line in cells}
    without = {line["scheme"] for line in lines} - {scheme for scheme, _ in by_cell}
    shown = [cell for cell in CELLS if cell in by_cell] + [(scheme, "none") for scheme in sorted(without)]
    for scheme, method in shown:
        line = by_cell.get((scheme, method), {})
        name = scheme if method == "none" else f"{scheme}, {method}"
        row = [f"{line[text]:,.2f}" if line else "" for text in texts]
        row.append(f"{line['stored_bytes'] / 1e6:,.1f}" if line else "")
        row += [written(lines, scheme, engine) for engine in ("jax", "onnx")]
        row += [f"{line[part]:.0f} s" if part in line else "" for part in ("seconds", "cpu")]
        print(f"| {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
