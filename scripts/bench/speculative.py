"""Speed of a model with a draft, beside the model alone, in turns.

Give MODEL and DRAFT, and a text to continue. Without them the model is a GPT-2 124M in geometry, with random
weights, and its draft the lower layers of it: what the layers above them add is made small by `--agree`, so
that the draft is often right. Such a pair shows what the loop costs and gains at that size and acceptance; it
says nothing of how often a distilled student is right.

Both continue the same prompts, in alternating order; the ratio is the median over rounds of the quotient
within a round. Greedy, and the tokens are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from statistics import median

from turns import machine

VOCAB = 50257


def main() -> None:
    options = parse()
    print(json.dumps(compare(options), indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="MODEL")
    parser.add_argument("draft", nargs="?", help="MODEL of the draft")
    parser.add_argument("--prompt", nargs="+", default=["The"], help="texts to continue")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once, without MODEL (default 1)")
    parser.add_argument(
        "--layers", type=int, default=12, help="layers of the model, without MODEL (default 12)"
    )
    parser.add_argument("--draft-layers", type=int, default=3, help="of which the draft has (default 3)")
    parser.add_argument(
        "--agree", type=float, default=0.15, help="scale of what the rest adds (default 0.15)"
    )
    parser.add_argument("--draft-tokens", type=int, default=4, help="longest draft (default 4)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens written (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured (default 5)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """Both in turns."""
    import numpy as np

    from ragjax.generation import Decoding, continuations
    from ragjax.interchange.folder import load
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    if options.model:
        model, draft, prompts = load(options.model), load(options.draft), options.prompt
    else:
        model, draft = constructed(options)
        prompts = np.random.default_rng(0).integers(0, VOCAB, (options.batch, 16)).tolist()
    asked = Decoding(max_new_tokens=options.new_tokens, stop_at_eos=False, draft_tokens=options.draft_tokens)

    def alone():
        return continuations(model, prompts, asked)

    def drafted():
        return continuations(model, prompts, asked, draft=draft)

    same = [a.tokens.tolist() == b.tokens.tolist() for a, b in zip(alone(), drafted(), strict=True)]
    seconds: dict[str, list[float]] = {"alone": [], "drafted": []}
    for turn in range(options.rounds):
        for name in list(seconds)[:: 1 if turn % 2 == 0 else -1]:
            begin = time.perf_counter()
            told = {"alone": alone, "drafted": drafted}[name]()
            seconds[name].append(time.perf_counter() - begin)
            if name == "drafted":
                found = told[0].speculation
    ratios = [a / b for a, b in zip(seconds["alone"], seconds["drafted"], strict=True)]
    tokens = options.new_tokens * len(prompts)
    return {
        "tokens_per_second": {name: tokens / median(taken) for name, taken in seconds.items()},
        "ratio": median(ratios),
        "ratios": ratios,
        "same_tokens": all(same),
        "acceptance": found.acceptance,
        "tokens_per_round": tokens / len(prompts) / found.rounds,
        "speed_up_told": found.speed_up,
        "options": vars(options),
        "machine": machine(),
    }


def constructed(options: argparse.Namespace):
    """A random model whose upper layers add little, and its lower layers as a model."""
    import jax

    from ragjax.model import Model
    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig

    config = DecoderConfig(
        vocab_size=VOCAB, positions=1024, width=768, layers=options.layers, heads=12, mlp_width=3072
    )
    params, lower = init_params(config, seed=0), options.draft_layers
    layers = params["layers"]
    for out in (layers["attention"]["out"], layers["mlp"]["down"]):
        out["kernel"] = out["kernel"].at[lower:].multiply(options.agree)
    small = dataclasses.replace(config, layers=lower)
    return Model(config, params), Model(small, params | {"layers": jax.tree.map(lambda x: x[:lower], layers)})


if __name__ == "__main__":
    main()
