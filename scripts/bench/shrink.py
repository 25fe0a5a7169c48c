"""Forward and decode speed of a shrunk GPT-2, beside the whole one and beside the ratio of their parameters.

The geometry is GPT-2 124M's with random weights; `--params`, `--flops` or `--latency` say to what share it is
shrunk, as `ragjax shrink` would without compensation, which changes no shape. Both models read in turns, in
alternating order, and the ratio is the median over rounds of the quotient within a round: once a batch of
sequences (forward), once a prompt that is continued token by token with a key-value cache (decode).

Speed is what a smaller model is for: a ratio of speeds below that of the parameters means that something
besides the weights takes time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time

from turns import machine

VOCAB = 50257


def main() -> None:
    options = parse()
    result = compare(options)
    print(json.dumps(result, indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--params", type=float, help="share of the parameters (default 0.5)")
    budget.add_argument("--flops", type=float, help="share of the operations a token")
    budget.add_argument("--latency", type=float, help="share of the forward pass's seconds")
    add_what_shrinks(parser)
    parser.add_argument("--batch", type=int, default=1, help="sequences at once (default 1)")
    parser.add_argument("--length", type=int, default=512, help="tokens read (default 512)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens decoded (default 32)")
    parser.add_argument("--layers", type=int, default=12, help="transformer blocks (default 12)")
    parser.add_argument("--rounds", type=int, default=7, help="times each is measured (default 7)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def add_what_shrinks(parser: argparse.ArgumentParser) -> None:
    """What of a model gets smaller, and in which steps."""
    parser.add_argument(
        "--what", nargs="+", choices=("neurons", "heads", "width", "layers"), default=(),
        help="what shrinks (default: neurons, heads and width)",
    )  # fmt: skip
    parser.add_argument(
        "--multiple", type=int, default=64, help="neurons and width are multiples (default 64)"
    )


def gpt2(layers: int = 12):
    """A model of GPT-2 124M's geometry, with random weights."""
    from ragjax.model import Model
    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig

    config = DecoderConfig(
        vocab_size=VOCAB, positions=1024, width=768, layers=layers, heads=12, mlp_width=3072
    )
    return Model(config, init_params(config, seed=0))


def compare(options: argparse.Namespace) -> dict:
    """Both models in turns."""
    import jax

    from ragjax.config import Shrink
    from ragjax.evaluation.speed import forward_speed
    from ragjax.parallel.compile_cache import keep_compiled_programs
    from ragjax.shrinking import as_written, shrink
    from ragjax.sparsity.shrink import flops_per_token, parameter_count, sizes_of

    keep_compiled_programs()
    whole = gpt2(options.layers)
    shares = {name: getattr(options, name) for name in ("params", "flops", "latency")}
    if not any(shares.values()):
        shares["params"] = 0.5
    asked = Shrink(
        **shares, what=tuple(options.what), multiple=options.multiple, batch_size=options.batch,
        length=options.length, importance="magnitude", compensate=False,
    )  # fmt: skip
    made = shrink(whole, asked)
    models = {"whole": whole, "shrunk": as_written(made.model)}
    load = os.getloadavg()[0]
    forward = forward_speed(models, batch=options.batch, length=options.length, rounds=options.rounds)
    decode = decode_speed(models, options)
    result: dict = {
        "asked": {name: share for name, share in shares.items() if share is not None},
        "reached": round(made.report.reached or 0, 4),
        "batch": options.batch, "length": options.length, "new_tokens": options.new_tokens,
        "rounds": options.rounds, "machine": machine(), "load_average": round(load, 2),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }  # fmt: skip
    for name, model in models.items():
        result[name] = {
            **sizes_of(model.config)._asdict(),
            "parameters": parameter_count(model.config),
            "flops_per_token": flops_per_token(model.config, options.length),
            "forward_tokens_per_second": round(forward[name].tokens_per_second, 1),
            "decode_tokens_per_second": round(decode[name].tokens_per_second, 1),
        }
    before, after = result["whole"], result["shrunk"]
    result["parameter_ratio"] = round(before["parameters"] / after["parameters"], 3)
    result["flops_ratio"] = round(before["flops_per_token"] / after["flops_per_token"], 3)
    result["forward_speed_ratio"] = round(forward["shrunk"].ratio, 3)
    result["decode_speed_ratio"] = round(decode["shrunk"].ratio, 3)
    return result


def decode_speed(models: dict, options: argparse.Namespace) -> dict:
    """Tokens a second of the greedy continuation of one prompt a sequence."""
    import numpy as np

    from ragjax.evaluation.speed import summarize
    from ragjax.generation.continuation import generate_tokens

    prompts = np.random.default_rng(0).integers(0, VOCAB, (options.batch, 16)).tolist()

    def once(name: str) -> float:
        begin = time.perf_counter()
        generate_tokens(models[name], prompts, max_new_tokens=options.new_tokens, stop_at_eos=False)
        return time.perf_counter() - begin

    for name in models:
        once(name)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds):
        for name in list(models) if turn % 2 == 0 else list(models)[::-1]:
            seconds[name].append(once(name))
    return summarize(seconds, tokens=options.batch * options.new_tokens)


if __name__ == "__main__":
    main()
