"""Decoding speed of a structurally halved GPT-2, beside the whole one and beside what their bytes promise.

The geometry is GPT-2 124M's with random weights; the other model is what `ragjax shrink --params 0.5` makes
of it, without compensation, which changes no shape. Both run in JAX and in onnxruntime, in float32 and int8,
and all take turns. Decoding is bound by memory: a step reads the weights once, so that a model of
half the bytes may be twice as fast.

    promised    bytes of weights that a step of the whole model reads, over those of the halved one
    times       its tokens a second over the whole one's, the median of quotients within a round
    kept        times over promised; the aim is 0.95
    of all      times over the quotient of all bytes of a step: of the weights, of keys and values as far as
                there are any halfway through, and of the scores

Beside small weights and for many texts the last two are a good part, and are not halved with the weights.
Nor is what one core writes for the other to read: after each round it is measured how far apart two cores
are, as `cores.py` does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from cores import two_cores_apart_ns
from shrink import add_what_shrinks, gpt2
from turns import machine

ENGINES = ("jax_float32", "jax_int8", "onnx_float32", "onnx_int8")


def main() -> None:
    options = parse()
    result = compare(options)
    print(json.dumps(result) if options.json else table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="prompts at once (default 1 8)")
    parser.add_argument("--prompt-tokens", type=int, default=8, help="tokens of a prompt (default 8)")
    parser.add_argument("--new-tokens", type=int, default=48, help="tokens written (default 48)")
    parser.add_argument("--params", type=float, default=0.5, help="share of the parameters (default 0.5)")
    add_what_shrinks(parser)
    parser.add_argument("--layers", type=int, default=12, help="transformer blocks (default 12)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that are timed (default 5)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """Both models in every engine, in turns."""
    from ragjax.benchmark.bandwidth import Reader
    from ragjax.benchmark.memory import bytes_of_texts
    from ragjax.benchmark.turns import take_turns
    from ragjax.benchmark.weights import weight_bytes
    from ragjax.config import Bench, Quantize, Shrink
    from ragjax.interchange.onnx import export_onnx, load_onnx
    from ragjax.parallel.compile_cache import keep_compiled_programs
    from ragjax.quantizing import quantize
    from ragjax.shrinking import as_written, shrink
    from ragjax.sparsity.shrink import sizes_of

    keep_compiled_programs()
    whole = gpt2(options.layers)
    asked = Shrink(
        params=options.params, what=tuple(options.what), multiple=options.multiple, importance="magnitude",
        compensate=False,
    )  # fmt: skip
    made = shrink(whole, asked)
    sizes = {"whole": whole, "halved": as_written(made.model)}
    wanted = Bench(
        batch=tuple(options.batch), prompt_tokens=options.prompt_tokens, new_tokens=options.new_tokens,
        rounds=options.rounds,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        opened = {}
        for engine in options.engines:
            kind, _, dtype = engine.partition("_")
            for size, model in sizes.items():
                path = Path(folder, f"{engine}-{size}")
                if kind == "onnx":
                    opened[engine, size] = load_onnx(export_onnx(model, path, dtype=dtype))
                elif dtype == "int8":
                    opened[engine, size] = quantize(model, Quantize(scheme="int8", tables="int8")).model
                else:
                    opened[engine, size] = model
        rounds, apart = [], []
        for each in take_turns(list(opened.values()), wanted, reader=Reader()):
            rounds.append(each)
            apart.append(round(two_cores_apart_ns()))
    places = {key: number for number, key in enumerate(opened)}
    found: dict[str, dict] = {}
    for batch in options.batch:
        for engine in options.engines:
            before, after = (
                [each.turns[batch][places[engine, size]].rest for each in rounds] for size in sizes
            )
            read = [weight_bytes(opened[engine, size]).of_step(batch) for size in sizes]
            moved = [
                weights + bytes_of_texts(model, batch, options.prompt_tokens + options.new_tokens // 2)
                for weights, model in zip(read, sizes.values(), strict=True)
            ]
            steps = batch * (options.new_tokens - 1)
            times = median(a / b for a, b in zip(before, after, strict=True))
            found.setdefault(str(batch), {})[engine] = {
                "whole_tokens_per_second": round(steps / median(before), 1),
                "halved_tokens_per_second": round(steps / median(after), 1),
                "promised": round(read[0] / read[1], 3),
                "times": round(times, 3),
                "kept": round(times * read[1] / read[0], 3),
                "kept_of_all_bytes": round(times * moved[1] / moved[0], 3),
            }
    shapes = {
        size: sizes_of(model.config)._asdict() | {"parameters": model.parameters}
        for size, model in sizes.items()
    }
    measured = {
        "new_tokens": options.new_tokens, "rounds": options.rounds, "machine": machine(),
        "cores_apart_ns": apart,
    }  # fmt: skip
    return {"batch": found, **measured, **shapes}


def table(result: dict) -> str:
    lines = []
    for batch, rows in result["batch"].items():
        lines.append(
            f"{f'batch {batch}':14}{'whole':>10}{'halved':>10}{'promised':>10}{'times':>8}{'kept':>8}"
            f"{'of all':>8}"
        )
        for engine, row in rows.items():
            lines.append(
                f"{engine:14}{row['whole_tokens_per_second']:>10,.1f}{row['halved_tokens_per_second']:>10,.1f}"
                f"{row['promised']:>10.2f}{row['times']:>8.2f}{row['kept']:>8.3f}"
                f"{row['kept_of_all_bytes']:>8.3f}"
            )
    for size in ("whole", "halved"):
        lines.append(f"{size}: {', '.join(f'{name} {value}' for name, value in result[size].items())}")
    lines.append(f"{result['machine']}; {result['new_tokens']} new tokens, {result['rounds']} rounds")
    apart = result["cores_apart_ns"]
    lines.append(f"from core to core and back, after each round: {' '.join(map(str, apart))} ns")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
